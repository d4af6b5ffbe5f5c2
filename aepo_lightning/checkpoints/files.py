"""Checkpoints as files and folders: put in place in one step, found again, removed.

A checkpoint is a file, or a folder where the weights are sharded. It is written beside its place under a name that
ends in `.partial`, brought to the disk, and renamed. So whatever has a proper name is whole, at any moment.
"""

import logging
import os
from pathlib import Path

from aepo_lightning.atomic_files import PARTIAL, flush, remove

logger = logging.getLogger(__name__)

SUFFIX = ".ckpt"
LAST = "last" + SUFFIX
"""A link to the newest checkpoint. A convenience: what it stands for is also found without it."""


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, newest first."""
    found = (path for path in folder.glob(f"*{SUFFIX}") if not path.is_symlink())
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def find_last(folder: Path) -> Path | None:
    """Return what `ckpt_path=last` means in a folder of checkpoints; None if there is none.

    That is where the link `last.ckpt` points; if a crash left it pointing nowhere, it is the newest checkpoint.
    """
    link = folder / LAST
    if link.exists():
        return link.parent / os.readlink(link) if link.is_symlink() else link
    return next(iter(find_checkpoints(folder)), None)


def point_last_to(target: Path) -> None:
    """Let `last.ckpt` beside `target` point to it, in one step."""
    link, fresh = target.with_name(LAST), target.with_name(LAST + PARTIAL)
    remove(fresh)
    if link.is_dir() and not link.is_symlink():
        remove(link)  # of another callback; `target` is in place already
    try:
        fresh.symlink_to(target.name)
    except OSError as error:
        logger.warning("No link %s (%s). `ckpt_path=last` takes the newest checkpoint instead.", link, error)
        return
    os.replace(fresh, link)
    flush(link.parent)


def remove_partial(folder: Path) -> list[str]:
    """Remove what a killed run left half written and return the names."""
    found = sorted(folder.glob(f"*{PARTIAL}"))
    for path in found:
        remove(path)
    return [path.name for path in found]
