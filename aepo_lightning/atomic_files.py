"""Files and folders that appear whole or not at all."""

import os
import shutil
from pathlib import Path

PARTIAL = ".partial"


def put_in_place(partial: Path, target: Path) -> None:
    """Make a finished checkpoint durable and give it its name. What had the name before goes afterwards."""
    for path in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
        _flush(path)
    aside = target.with_name(f"{target.name}.replaced{PARTIAL}")
    if target.is_dir():
        target.rename(aside)  # a folder cannot be replaced in one step; `find_last` bridges the moment without it
    os.replace(partial, target)
    _flush(target.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        # A folder that is half removed must not look whole.
        doomed = path if path.name.endswith(PARTIAL) else path.rename(path.with_name(path.name + PARTIAL))
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
