"""What a rank knows of itself: how much it has done, where it stands, whether an error may be the fault of others."""

import sys
import traceback
from threading import main_thread

import torch.distributed as dist

_progress = {"ticks": 0}


def tick() -> None:
    """Count one piece of finished work, such as a tree or a batch. Without any, all ranks count as stuck."""
    _progress["ticks"] += 1


def progress() -> int:
    """Return how many pieces of work were counted."""
    return _progress["ticks"]


def may_be_an_effect(error: BaseException) -> bool:
    """Return whether an error says that a collective failed, which another rank may have caused."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "process group"))
    )


def where() -> str:
    """Return where the main thread stands."""
    frame = sys._current_frames().get(main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "the end of the program"


def is_waiting(place: str) -> bool:
    """Return whether a rank waits for others: its innermost frames are those of a collective."""
    collectives = ("torch/distributed", "distributed/collectives.py")
    return any(each in line for each in collectives for line in place.splitlines()[-6:])
