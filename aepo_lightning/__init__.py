"""Composable PyTorch Lightning parts for agentic reinforcement learning, with AEPO at their heart.

`callbacks/` and `conf/` stand beside this folder in a checkout, where the people who run experiments look for
them; their import names are `aepo_lightning.callbacks` and `aepo_lightning.conf` there and in an installed wheel.
"""

from pathlib import Path as _Path

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "callbacks").is_dir():
    __path__.append(str(_checkout))

__version__ = "0.1.0"
