"""Ranks that watch each other, so that none waits for one that is gone.

Only processes and the store of the process group are known here: no tensors, no trainer.
"""

from aepo_lightning.distributed.ranks.apart import CalledBackError, WorkApart, were_cut_off
from aepo_lightning.distributed.ranks.board import Board, Failure, Sign
from aepo_lightning.distributed.ranks.evidence import tick
from aepo_lightning.distributed.ranks.guard import (
    current_watch,
    guard_fit,
    guarded_process,
    report_cut_off,
    start_watch,
)
from aepo_lightning.distributed.ranks.processes import (
    Neighbours,
    end_children,
    how_it_ended,
    machine_id,
    watch_launcher,
)
from aepo_lightning.distributed.ranks.signals import ending_signal, finishing, stop_on_signal
from aepo_lightning.distributed.ranks.watch import RankWatch, WatchTimes

__all__ = [
    "Board",
    "CalledBackError",
    "Failure",
    "Neighbours",
    "RankWatch",
    "Sign",
    "WatchTimes",
    "WorkApart",
    "current_watch",
    "end_children",
    "ending_signal",
    "finishing",
    "guard_fit",
    "guarded_process",
    "how_it_ended",
    "machine_id",
    "report_cut_off",
    "start_watch",
    "stop_on_signal",
    "tick",
    "watch_launcher",
    "were_cut_off",
]
