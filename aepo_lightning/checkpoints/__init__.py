"""Checkpoints: what they hold beside Lightning's own state, and how they come to and from the disk.

    identity.py       what a checkpoint belongs to: format, architecture, shapes, ranks
    random_state.py   the random generators of every rank
    files.py          complete or not, put in place atomically, which one is the last
    verification.py   corrupt, cut, foreign: what cannot be loaded is refused with its name and a better one
    sharded_index.py  what a sharded folder holds, read without running what is in it
    take_back.py      back to the weights of a checkpoint in the middle of a run
    sharded_io.py     loads a sharded folder where nothing is sharded, and nowhere before it was checked

`aepo_lightning.callbacks.AtomicCheckpoint` writes them, `AEPOModule` adds the identity and the generators.
"""

from aepo_lightning.atomic_files import PARTIAL, put_in_place, remove
from aepo_lightning.checkpoints.files import LAST, find_checkpoints, find_last, point_last_to, remove_partial
from aepo_lightning.checkpoints.identity import (
    IDENTITY_KEY,
    RANDOM_KEY,
    check_architecture,
    check_format,
    check_shapes,
    describe,
)
from aepo_lightning.checkpoints.random_state import random_states, restore_random_states
from aepo_lightning.checkpoints.sharded_io import EitherCheckpointIO, check_before_loading
from aepo_lightning.checkpoints.take_back import take_back
from aepo_lightning.checkpoints.verification import CheckpointSummary, check_shards, verify_checkpoint

__all__ = [
    "IDENTITY_KEY",
    "LAST",
    "PARTIAL",
    "RANDOM_KEY",
    "CheckpointSummary",
    "EitherCheckpointIO",
    "check_architecture",
    "check_before_loading",
    "check_format",
    "check_shapes",
    "check_shards",
    "describe",
    "find_checkpoints",
    "find_last",
    "point_last_to",
    "put_in_place",
    "random_states",
    "remove",
    "remove_partial",
    "restore_random_states",
    "take_back",
    "verify_checkpoint",
]
