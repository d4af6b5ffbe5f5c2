"""What the tests of the Python pool share."""

import asyncio
import os
import shutil
import time
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


def is_running(pid):
    """A killed orphan that its new parent has yet to reap does not count."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def inner(worker_pid):
    """The zygote below a bubblewrap process."""
    return children(worker_pid)[0]


def open_files():
    return len(os.listdir("/proc/self/fd"))


def worker_pids(pool):
    return pool._opening.backend.pids


def code_runs(pool):
    return any(children(inner(pid)) for pid in worker_pids(pool))
