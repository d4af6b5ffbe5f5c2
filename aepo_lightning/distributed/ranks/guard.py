"""The one watch of this process: started when the ranks know each other, and held until the program is through."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from aepo_lightning.distributed.ranks.apart import forget_cut_off, were_cut_off
from aepo_lightning.distributed.ranks.board import Board
from aepo_lightning.distributed.ranks.processes import end_children, watch_launcher
from aepo_lightning.distributed.ranks.signals import (
    RUN_NOTICE,
    EndTimes,
    end_on_lent_signals,
    ending_on_signals,
    flush_streams,
)
from aepo_lightning.distributed.ranks.watch import RankWatch, WatchTimes
from aepo_lightning.errors import SIGNAL_STATUS, SignalExit

_current: list[RankWatch] = []
_guards: list[object] = []


def current_watch() -> RankWatch | None:
    """Return the watch of this process, if there is one."""
    return _current[-1] if _current else None


def start_watch(times: WatchTimes) -> RankWatch | None:
    """Return the watch of this process, started if need be. None where no other rank exists."""
    if not _current and dist.is_initialized() and dist.get_world_size() > 1:
        store = _get_default_store()
        # A connection of its own: a request of the main thread may wait for minutes.
        own_store = store.clone()  # type: ignore[attr-defined]
        board = Board(own_store, dist.get_rank(), dist.get_world_size())
        _current.append(RankWatch(board, times))
        for _ in _guards:
            _current[-1].enter()
    return current_watch()


@contextmanager
def guarded_process(times: EndTimes | None = None, notice: str = RUN_NOTICE) -> Iterator[None]:
    """Tie this process to the other ranks from the moment that they are known to the end of the block.

    An exception that leaves the block ends the job: on this rank with the error itself, on the others with its name.
    SIGTERM, SIGINT, SIGUSR1 and SIGHUP raise `SignalExit` in the block; what does not end by it is ended.

    Args:
        times: How long the block may take to end after a signal.
        notice: What to say when a signal comes, with a place for the exit `status`.
    """
    is_over = watch_launcher()
    if _current:
        _current[-1].enter()
    _guards.append(is_over)
    try:
        with ending_on_signals(_end_by_signal, times, notice):
            yield
    except BaseException as error:
        watch = current_watch()
        is_failure = not (isinstance(error, SystemExit) and not error.code)
        if watch is not None and is_failure:
            watch.end(error)
        if isinstance(error, SignalExit):
            end_children()
        raise
    finally:
        is_over.set()
        _guards.remove(is_over)
        if _current:
            _current[-1].leave()


def guard_fit(handlers: Mapping[int, Any]) -> None:
    """Have signals end this process while something trains in it, whatever that waits for; see `SignalExit`.

    A handler of Lightning, which takes part in a collective that the other ranks may know nothing of, is replaced.

    Args:
        handlers: By signal, those that were there before the trainer put its own in their place. Signals that
            `guarded_process` has taken need not be named.
    """
    end_on_lent_signals(_end_by_signal, handlers)


def report_cut_off(error: BaseException) -> None:
    """Post why this rank ends, if all were cut off together and have done what they had to do then."""
    watch = current_watch()
    if were_cut_off() and watch is not None:
        watch.note(error)
    forget_cut_off()


def _end_by_signal(error: SignalExit, at_once: bool) -> None:
    """End this process, whatever its main thread does; unless at once, tell the other ranks."""
    flush_streams()
    watch = current_watch()
    if watch is not None and not at_once:
        watch.end(error)
    end_children(at_once=at_once)
    os._exit(SIGNAL_STATUS + error.number)
