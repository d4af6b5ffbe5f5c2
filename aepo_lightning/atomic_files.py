"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Ending of the name of what is not whole yet."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a free path to write a file or folder to, and put it in place of the target at the end.

    After an error nothing is left of it, and the target is what it was.
    """
    partial = target.with_name(target.name + PARTIAL)
    try:
        remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        put_in_place(partial, target)
    finally:
        with suppress(OSError):  # what is wrong with the disk is on its way to the user already
            remove(partial)


def write_json(target: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as a JSON file that is whole or not there."""
    with replacing(target) as partial:
        partial.write_text(json.dumps(dict(values), indent=1), encoding="utf-8")


def put_in_place(partial: Path, target: Path) -> None:
    """Make a finished file or folder durable and give it its name. What had the name before goes afterwards."""
    for path in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
        flush(path)
    aside = target.with_name(f"{target.name}.replaced{PARTIAL}")
    if target.is_dir():
        target.rename(aside)  # a folder cannot be replaced in one step; `find_last` bridges the moment without it
    os.replace(partial, target)
    flush(target.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        # A folder that is half removed must not look whole.
        doomed = path if path.name.endswith(PARTIAL) else path.rename(path.with_name(path.name + PARTIAL))
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
