"""Sends a run a signal, SIGKILL unless told otherwise, at the nth call of a function.

A command gets it by `+callbacks.kill._target_=...`.
"""

import importlib
import os
import signal
from pathlib import Path

import lightning as L


class Killer(L.Callback):
    """Wraps a function where it is looked up, such as `aepo_lightning.training.module:AEPOModule.training_step`."""

    def __init__(self, where, count=1, cuts=False, rank=None, number=signal.SIGKILL):
        self.count = count
        self.cuts = cuts
        self.rank = rank
        self.number = number
        module, path = where.split(":")
        owner = importlib.import_module(module)
        *outer, name = path.split(".")
        for each in outer:
            owner = getattr(owner, each)
        self.original = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: self.call(*args, **kwargs))

    def call(self, *args, **kwargs):
        self.count -= 1
        if self.count == 0 and self.rank in (None, int(os.environ.get("LOCAL_RANK", "0"))):
            if self.cuts:
                cut(args[0])
            os.kill(os.getpid(), self.number)
        return self.original(*args, **kwargs)


def cut(path):
    """Leave half of a file, as a write does that did not come to its end; in a folder, half of the largest one."""
    files = [each for each in Path(path).rglob("*") if each.is_file()] if Path(path).is_dir() else [Path(path)]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
