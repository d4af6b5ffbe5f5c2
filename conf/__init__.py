"""Hydra configuration groups. Every leaf is a `_target_` and its arguments."""
