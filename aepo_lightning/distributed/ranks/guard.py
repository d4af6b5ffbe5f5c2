"""The one watch of this process: started when the ranks know each other, and held until the program is through."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from aepo_lightning.distributed.ranks.board import Board
from aepo_lightning.distributed.ranks.processes import watch_launcher
from aepo_lightning.distributed.ranks.watch import RankWatch, WatchTimes

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
def guarded_process() -> Iterator[None]:
    """Tie this process to the other ranks from the moment that they are known to the end of the block.

    An exception that leaves the block ends the job: on this rank with the error itself, on the others with its name.
    """
    is_over = watch_launcher()
    if _current:
        _current[-1].enter()
    _guards.append(is_over)
    try:
        yield
    except BaseException as error:
        watch = current_watch()
        is_failure = not (isinstance(error, SystemExit) and not error.code)
        if watch is not None and is_failure:
            watch.end(error)
        raise
    finally:
        is_over.set()
        _guards.remove(is_over)
        if _current:
            _current[-1].leave()
