"""Work that each rank does by itself between two collectives, and how all of them learn that it was cut off on one.

A rank that waits in a collective cannot be reached. So after such work the ranks meet in the store of their process
group: each leaves word how its work ended and waits for the others' in Python, where signals are heard. A rank that is
cut off calls the others back from their work. Then they may do one more thing together, such as to save their state.
"""

import os
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from aepo_lightning.distributed.ranks.board import Failure, failure_of, failure_to_text, text_to_failure
from aepo_lightning.distributed.ranks.signals import ending_signal, finishing, is_heard
from aepo_lightning.errors import AepoError, EngineError, SignalExit

_PATIENCE_S = 8.0
"""How long ranks that were called back may take: less than a process has after a signal."""
_LOOK_S = 0.5
"""How often a rank at work looks whether it is called back."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
_STORE_PATIENCE = timedelta(seconds=15)
_DONE, _CUT = "done", "cut"


class CalledBackError(AepoError, RuntimeError):
    """This rank was called back from its work, because another cannot go on."""

    def __init__(self, failure: Failure) -> None:
        """Keep why the other rank cannot."""
        super().__init__(f"Rank {failure.rank} ({failure.place}) cannot go on: {failure.reason}")
        self.failure = failure


@dataclass(slots=True)
class _State:
    num_meetings: int = 0
    is_cut_off: bool = False
    group_store: Any = None
    own_store: Any = None


_state = _State()


def were_cut_off() -> bool:
    """Return whether the work that ranks last did apart was cut off and all of them know it: they are at one place."""
    return _state.is_cut_off


def forget_cut_off() -> None:
    """Let `were_cut_off` be false from now on: ranks may stand in different places again."""
    _state.is_cut_off = False


class WorkApart:
    """A block of work of this rank alone, after which it meets the others. Every rank has as many of them.

    A rank whose block ends by an error calls the others back. If all come, `were_cut_off` is true everywhere; the error
    goes on, and is a `CalledBackError` on ranks that had none.
    """

    def __init__(self, stop: Callable[[], object], settle: Callable[[], object] = lambda: None) -> None:
        """Keep what stops the work.

        Args:
            stop: Called in another thread where this rank is called back; lets the block end by any error.
            settle: Called after the block, however it ended, before this rank waits for others.
        """
        self._stop = stop
        self._settle = settle
        self._is_over = Event()
        self._meeting: _Meeting | None = None
        self._thread: Thread | None = None

    def __enter__(self) -> "WorkApart":
        """Begin."""
        _state.is_cut_off = False
        if dist.is_initialized() and dist.get_world_size() > 1:
            _state.num_meetings += 1
            self._meeting = _Meeting(_state.num_meetings)
            self._thread = Thread(target=self._listen, daemon=True, name="work-apart")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Meet the others.

        Raises:
            CalledBackError: If this rank is well, but another is not.
        """
        if self._meeting is None or self._thread is None:
            _state.is_cut_off = error is not None
            return
        self._is_over.set()
        self._thread.join()
        if error is not None:
            self._meeting.call(error)
        with suppress(EngineError):
            self._settle()
        with finishing():
            words = self._meeting.meet(_DONE if error is None else _CUT)
            _state.is_cut_off = _CUT in words
            call = self._meeting.called()
        is_back = set(words) != {_DONE} and isinstance(error, CancelledError | None)
        if is_back and call is not None and call.rank != dist.get_rank():
            raise CalledBackError(call) from error

    def _listen(self) -> None:
        meeting = self._meeting
        assert meeting is not None, "there are other ranks"
        while not self._is_over.wait(_LOOK_S):
            if (call := meeting.called()) is not None:
                if not _obey(call):
                    self._stop()
                return


class _Meeting:
    """The pages of one meeting in the store: a call to come at once, and how the work of each rank ended."""

    def __init__(self, number: int) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._store = _own_store()
        self._number = number
        if number > 2:  # all have left the one before the last
            self._store.delete_key(f"{number - 2}/{self._rank}")

    def called(self) -> Failure | None:
        """Return why some rank cannot go on; None if all can, or nobody knows."""
        with suppress(RuntimeError):
            if self._store.check([f"{self._number}/call"]):
                return text_to_failure(self._store.get(f"{self._number}/call"))
        return None

    def call(self, error: BaseException) -> Failure | None:
        """Call the other ranks; return the call that stands, which is the first, or None if nobody can be called."""
        own = failure_to_text(failure_of(error, self._rank))
        with suppress(RuntimeError):
            return text_to_failure(self._store.compare_set(f"{self._number}/call", "", own))
        return None

    def meet(self, word: str) -> list[str]:
        """Leave word how the own work ended, wait for the others, and return what all have said.

        That is nothing where somebody was called back and did not come in time.
        """
        pages = [f"{self._number}/{rank}" for rank in range(self._world)]
        try:
            self._store.set(pages[self._rank], word)
            return [word.decode() for word in self._store.multi_get(pages)] if self._wait(pages) else []
        except RuntimeError:  # the store is gone: whatever has happened, it was not agreed upon
            return []

    def _wait(self, pages: list[str]) -> bool:
        called_at, pause = None, _FIRST_PAUSE_S
        while not self._store.check(pages):
            if called_at is None and (call := self._look()) is not None:
                called_at = monotonic()
                _obey(call)
            if called_at is not None and monotonic() - called_at > _PATIENCE_S:
                return False
            sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)
        return True

    def _look(self) -> Failure | None:
        """Return a call; where this rank was told to end while it waits, make one."""
        if (number := ending_signal()) is not None:
            return self.called() or self.call(SignalExit(number))
        return self.called()


def _own_store() -> PrefixStore:
    """Return a client of the group's store for this purpose: requests of one client wait for each other."""
    group_store: Any = _get_default_store()
    if _state.group_store is not group_store:
        _state.group_store, _state.own_store = group_store, PrefixStore("aepo_apart", group_store.clone())
        _state.own_store.set_timeout(_STORE_PATIENCE)
    own: PrefixStore = _state.own_store
    return own


def _obey(call: Failure) -> bool:
    """Let a signal that one rank got be one to this rank; return whether it is heard here."""
    if call.signal is None or not is_heard(call.signal):
        return False
    if ending_signal() is None:
        os.kill(os.getpid(), call.signal)
    return True
