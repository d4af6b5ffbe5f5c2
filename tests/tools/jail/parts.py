"""What the tests of the Python pool share."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
HANG = "while True:\n    pass"


def run(pool, code, **settings):
    return asyncio.run(pool.run(code, **settings))


def children(pid):
    try:
        listings = list(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(child) for listing in listings for child in listing.read_text().split()]
    except OSError:
        return []


def descendants(pid):
    """Every process below one, by its number."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]


def inner(worker_pid):
    """The zygote below a bubblewrap process."""
    return children(worker_pid)[0]


def open_files():
    return len(os.listdir("/proc/self/fd"))


def worker_pids(pool):
    return pool._opening.backend.pids


def code_runs(pool):
    return any(children(inner(pid)) for pid in worker_pids(pool))
