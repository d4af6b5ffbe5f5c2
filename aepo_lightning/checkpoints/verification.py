"""Whether a checkpoint can be loaded, and what it is of, before anything is changed."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aepo_lightning.checkpoints.files import find_checkpoints
from aepo_lightning.checkpoints.identity import IDENTITY_KEY, check_format
from aepo_lightning.checkpoints.sharded_index import INDEX, StoredEntry, check_values, read_index
from aepo_lightning.errors import DataError

_META = "meta.pt"
# What reading a damaged file raises: cut archives, foreign bytes, a pickle that ends early or names unknown things.
_UNREADABLE = (
    OSError,
    MemoryError,
    OverflowError,
    TypeError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_sound: dict[Path, frozenset[tuple[object, ...]]] = {}
"""Sharded folders that were checked, and their files then: on one resume several readers ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """What a checkpoint says about itself."""

    path: Path
    epoch: int
    """Number of the last iteration in it, from 0."""
    global_step: int
    identity: Mapping[str, Any]

    def is_finished(self, max_epochs: int) -> bool:
        """Return whether a run of so many iterations has nothing left to train. -1 never ends."""
        return 0 <= max_epochs <= self.epoch + 1


def verify_checkpoint(path: Path) -> CheckpointSummary:
    """Check that a checkpoint is whole and of this format.

    Every byte of a file is checked against its checksum. Of a sharded folder the state is, and what `check_shards`
    looks at.

    Raises:
        DataError: If it is not. The damaged file is named, and the next best checkpoint.
    """
    if path.is_dir():
        check_shards(path)
    state = _read_state(path, path / _META if path.is_dir() else path)
    check_format(state.get(IDENTITY_KEY), str(path))
    return CheckpointSummary(
        path=path, epoch=int(state["epoch"]), global_step=int(state["global_step"]), identity=state[IDENTITY_KEY]
    )


def _read_state(path: Path, file: Path) -> dict[str, Any]:
    """Read what is no shard, by its checksums; large tensors stay on the disk."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return _as_state(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
        reason = f"the checksum of its part {damaged} is wrong"
    except _UNREADABLE as error:
        reason = _cannot_be_read(error)
    raise _unusable(path, file, reason)


def check_shards(path: Path) -> None:
    """Check a sharded folder before torch reads it: it is whole, and nothing in it runs code when it is loaded.

    The sizes of the shards are compared with the index. A folder is read once, unless a file of it changes.

    Raises:
        DataError: If it is not. The file is named, and the next best checkpoint.
    """
    state = _state_of(path)
    if _sound.get(path.resolve()) == state:
        return
    for name in (INDEX, _META):
        if not (path / name).is_file():
            raise _unusable(path, path / name, "it is missing")
    shards: dict[str, list[StoredEntry]] = {}
    try:
        for entry in read_index(path):
            shards.setdefault(entry.file, []).append(entry)
    except _UNREADABLE as error:
        raise _unusable(path, path / INDEX, _cannot_be_read(error)) from error
    for name, entries in sorted(shards.items()):
        _check_shard(path, path / name, entries)
    _sound[path.resolve()] = state


def _state_of(folder: Path) -> frozenset[tuple[object, ...]]:
    """Return what tells whether a file of a folder was changed."""
    found = ((each.name, each.stat()) for each in folder.iterdir())
    return frozenset((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def _check_shard(path: Path, shard: Path, entries: list[StoredEntry]) -> None:
    size = max(entry.offset + entry.length for entry in entries)
    found = shard.stat().st_size if shard.is_file() else None
    if found is None or found < size:
        held = "it is missing" if found is None else f"it has {found} bytes instead of {size}"
        raise _unusable(path, shard, held)
    try:
        check_values(path, shard.name, entries)
    except _UNREADABLE as error:
        raise _unusable(path, shard, _cannot_be_read(error)) from error


def _as_state(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or "epoch" not in found or "global_step" not in found:
        raise ValueError("it is no checkpoint of Lightning")
    return found


def _cannot_be_read(error: Exception) -> str:
    first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"it cannot be read ({first_line})"


def _unusable(path: Path, damaged: Path, reason: str) -> DataError:
    others = [other for other in find_checkpoints(path.parent) if other.resolve() != path.resolve()]
    advice = f"The next best is ckpt_path={others[0]}" if others else "There is no other checkpoint beside it"
    return DataError(f"{damaged} must be a whole part of the checkpoint {path.name}, but {reason}. {advice}.")
