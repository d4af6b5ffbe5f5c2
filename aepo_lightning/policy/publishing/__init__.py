"""Trained weights on their way out: gathered, published to an engine and checked there, kept for replays."""
