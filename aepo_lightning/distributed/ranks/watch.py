"""One thread in each rank that notices when the job cannot go on, says why, and ends the process.

Three things end a job: a rank that says it failed, a rank whose process is gone, and no progress on any rank. A rank
that waits in a collective cannot be interrupted, so the thread ends its process; the work that was finished is on disk.
"""

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic, sleep
from typing import NoReturn

from aepo_lightning.distributed.ranks.apart import CalledBackError, were_cut_off
from aepo_lightning.distributed.ranks.board import Board, Failure, Sign, failure_of
from aepo_lightning.distributed.ranks.evidence import is_waiting, may_be_an_effect, progress, where
from aepo_lightning.distributed.ranks.processes import Neighbours, end_children, how_it_ended
from aepo_lightning.distributed.ranks.signals import exit_status
from aepo_lightning.errors import boundary

_READ_S = 5.0
"""How long a rank that ends waits for the others to know why."""
_CAUSE_S = 8.0
"""How long a rank whose collective failed waits for the rank that caused it to say so."""
_SILENT_S = 4.0
"""Without a sign for this long, a rank is named as the likely cause of a failed collective."""
_MEET_S = 0.1
"""How often a rank looks whether all have come, and how long the kernel may take to tell of the end of a process."""
_LEAVE_S = 10.0
"""How long the rank that holds the store waits for the others to be through."""
_TEARDOWN_S = 20.0
"""How long a rank that failed may take to end by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTimes:
    """When a rank counts as lost, in seconds."""

    poll_s: float = 1.0
    dead_after_s: float = 60.0
    """A rank on another machine without a sign for this long is gone. Longer than anything that holds Python's lock."""
    stall_after_s: float | None = 3600.0
    """No rank has finished anything for this long: some wait for one that never comes. None waits for ever."""


@dataclass(slots=True)
class _Heard:
    """The last sign of a rank, and when it and its progress last changed on the clock of this process."""

    sign: Sign
    at: float
    progress_at: float


class RankWatch:
    """The watch of this rank. Only ranks that are in it judge others and are judged."""

    def __init__(self, board: Board, times: WatchTimes) -> None:
        """Start watching; every rank must do so."""
        self.times = times
        self._board = board
        self._depth = 0
        self._beat = 0
        self._closers: list[Callable[[], object]] = []
        self._ending = Lock()
        self._reported_at: float | None = None
        self._has_met = False
        self._has_store = True
        self._gone_before: set[int] = set()
        now = monotonic()
        self._heard = {rank: _Heard(Sign(), now, now) for rank in range(board.world)}
        self._neighbours = Neighbours()
        self._is_over = Event()
        # Under torchrun the store lives in the process of the launcher.
        self._is_store_elsewhere = "TORCHELASTIC_RUN_ID" in os.environ
        board.introduce(Sign(is_in=False))
        self._thread = Thread(target=self._run, daemon=True, name="rank-watch")
        self._thread.start()
        # Python must not shut down around a thread that is inside the store's C++ code.
        atexit.register(self._stop)

    def _stop(self) -> None:
        self._is_over.set()
        self._neighbours.wake()
        self._thread.join(_READ_S)

    def enter(self) -> None:
        """Say that others may have to wait for this rank. Calls may be nested."""
        if self._depth == 0:
            self._gone_before = set(self._neighbours.ended)
        self._depth += 1
        self._show()

    def leave(self) -> None:
        """Say that nobody has to wait for this rank any more.

        Rank zero holds the store, so it stays until the others are through, but no longer than some seconds.
        """
        self._depth -= 1
        if self._depth:
            return
        with boundary(lambda _: None):  # a store that is gone has nobody to tell
            self._show()
            deadline = monotonic() + _LEAVE_S
            while self._board.rank == 0 and monotonic() < deadline:
                if not any(sign.is_in for sign in self._board.signs(self._board.others).values()):
                    break
                sleep(0.1)

    def before_end(self, closer: Callable[[], object]) -> None:
        """Call this before the process is ended, such as to flush a logger."""
        self._closers.append(closer)

    def report(self, error: BaseException) -> None:
        """Tell the other ranks that this one failed and wait until they know, which takes seconds at most.

        Where another rank was the cause, this does not return: its failure is shown and the process ended.
        """
        if self._reported_at is not None:
            return
        own = self._failure_of(error)
        with boundary(lambda _: None):  # without the store the watch of each rank ends it
            if may_be_an_effect(error):
                # Whatever the cause was, the thread of this watch hears of it and ends the process meanwhile.
                sleep(_CAUSE_S)
                own = self._with_suspects(own)
            self._reported_at = monotonic()
            standing = self._board.post(own)
            if standing.rank != own.rank:
                self._end(standing)
            self._close()
            self._board.wait_until_read(_READ_S)

    def note(self, error: BaseException) -> None:
        """Post why this rank ends where all ranks know already: each ends by itself, and none waits for another."""
        with boundary(lambda _: None):
            self._board.post(self._failure_of(error))
        self._reported_at = monotonic()

    def end(self, error: BaseException) -> None:
        """Report an error, show it and end this process with status 1, or that of the signal which told it to end."""
        self.report(error)
        self._end(self._failure_of(error))

    def _failure_of(self, error: BaseException) -> Failure:
        return error.failure if isinstance(error, CalledBackError) else failure_of(error, self._board.rank)

    def _with_suspects(self, failure: Failure) -> Failure:
        now = monotonic()
        silent = [rank for rank, heard in self._heard.items() if now - heard.at > _SILENT_S and heard.sign.beat]
        if self._board.rank or not silent:
            return failure
        reason = f"{failure.reason}. No sign for some seconds of rank {', '.join(map(str, silent))}"
        return Failure(rank=failure.rank, reason=reason, place=failure.place, details=failure.details)

    def _show(self) -> None:
        self._beat += 1
        self._board.show(Sign(beat=self._beat, ticks=progress(), is_in=self._depth > 0))

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._neighbours.wait(self.times.poll_s if self._has_met else _MEET_S)
            try:
                failure = self._look()
            except RuntimeError as error:  # whatever the store raises
                failure = self._without_store(error)
            if failure is not None and self._depth:
                self._take(failure)

    def _take(self, failure: Failure) -> None:
        if self._reported_at is not None and monotonic() - self._reported_at < _TEARDOWN_S:
            return  # this rank is ending by itself, with its own error
        self._end(failure)

    def _look(self) -> Failure | None:
        if 0 in self._neighbours.ended and self._heard[0].sign.is_in and not self._is_store_elsewhere:
            raise RuntimeError("rank zero has ended")
        self._show()
        if self._board.is_asked_for_place():
            self._board.tell_place(where())
        standing = self._board.failure()
        if standing is not None and were_cut_off():  # all save together, and each ends by itself
            self._hear()
            return self._gone() or self._silent()
        if standing is not None or not self._depth or not self._meet():
            return standing
        self._hear()
        found = self._gone() or self._silent() or self._stalled()
        return None if found is None else self._board.post(found)

    def _meet(self) -> bool:
        if not self._has_met and self._board.has_met_all():
            self._neighbours.add(self._board.neighbours(self._board.others))
            self._has_met = True
        return self._has_met

    def _know(self, rank: int) -> None:
        """Learn whether a rank that failed before all had met is on this machine, where it speaks for itself."""
        if self._has_store and not self._has_met and rank != self._board.rank:
            self._neighbours.add(self._board.neighbours([rank]))

    def _hear(self) -> None:
        """Rank zero hears all, the others rank zero only, so that the work grows with the ranks and not their pairs."""
        now = monotonic()
        for rank, sign in self._board.signs(self._board.others if self._board.rank == 0 else [0]).items():
            last = self._heard[rank]
            at = now if sign.beat != last.sign.beat else last.at
            progress_at = now if sign.ticks != last.sign.ticks else last.progress_at
            self._heard[rank] = _Heard(sign, at, progress_at)
        own = self._heard[self._board.rank]
        if own.sign.ticks != progress():
            self._heard[self._board.rank] = _Heard(Sign(ticks=progress()), now, now)

    def _gone(self) -> Failure | None:
        """Return the rank of this machine whose process has ended although others may wait for it."""
        ended = sorted(self._neighbours.ended)
        for rank, sign in self._board.signs(ended).items() if ended else ():
            if sign.is_in or rank in self._gone_before:
                return self._ended_failure(rank)
        return None

    def _ended_failure(self, rank: int) -> Failure:
        pid = self._neighbours.pids[rank]
        return Failure(rank=rank, reason=f"its process {pid} ended {how_it_ended(pid)}", place="this machine")

    def _silent(self) -> Failure | None:
        now, limit = monotonic(), self.times.dead_after_s
        for rank, heard in self._heard.items():
            is_judged = heard.sign.is_in and rank != self._board.rank and (self._board.rank == 0 or rank == 0)
            if is_judged and now - heard.at > limit:
                return Failure(rank=rank, reason=f"it gave no sign for {limit:g} s, so its machine or process is gone")
        return None

    def _stalled(self) -> Failure | None:
        limit = self.times.stall_after_s
        if self._board.rank or limit is None:
            return None
        if monotonic() - max(heard.progress_at for heard in self._heard.values()) < limit:
            return None
        places = self._board.ask_places(where(), 3 * self.times.poll_s + 2)
        suspects = [rank for rank, place in places.items() if not is_waiting(place)] or sorted(places)
        details = "\n".join(f"Rank {rank} stands at\n{places[rank]}" for rank in suspects)
        reason = (
            f"no rank has finished anything for {limit:g} s, and this one does not wait for the others. Look at where "
            "it stands, or raise `stall_after_s` of the RankGuard callback"
        )
        return Failure(rank=suspects[0], reason=reason, details=details)

    def _without_store(self, error: RuntimeError) -> Failure | None:
        self._has_store = False
        if not self._heard[0].sign.is_in:
            self._is_over.set()  # rank zero is through and has taken the store with it
            return None
        if 0 in self._neighbours.wait(_MEET_S):
            return self._ended_failure(0)
        return Failure(rank=0, reason=f"the store of the process group, which it holds, is gone: {error}")

    def _end(self, failure: Failure) -> NoReturn:
        """Show the failure and end this process. The first thread that comes here does it."""
        if not self._ending.acquire(blocking=False):
            sleep(_TEARDOWN_S)
        with boundary(lambda _: None):  # a store that is gone knows nobody
            self._know(failure.rank)
        sys.stdout.flush()
        sys.stderr.write(self._message(failure))
        sys.stderr.flush()
        self._close()
        if self._has_store:
            with boundary(lambda _: None):
                self._acknowledge(failure)
        end_children(leaving=self._neighbours.pids.values())
        os._exit(exit_status())

    def _acknowledge(self, failure: Failure) -> None:
        self._board.acknowledge()
        if self._board.rank == 0:  # it holds the store, in which the others have to read
            self._board.wait_until_read(_READ_S, without=failure.rank)
        else:  # the main process of this machine speaks first
            sleep(self.times.poll_s)

    def _close(self) -> None:
        """Do what must be done before the end, once, and not for long."""
        closers, self._closers = self._closers, []

        def close() -> None:
            for closer in closers:
                with boundary(lambda _: None):
                    closer()

        closing = Thread(target=close, daemon=True)
        closing.start()
        closing.join(_READ_S)

    def _message(self, failure: Failure) -> str:
        at = f" ({failure.place})" if failure.place else ""
        head = f"Rank {failure.rank} of {self._board.world}{at}: {failure.reason}."
        is_own = failure.rank == self._board.rank
        # Rank zero speaks for those who write to the terminal of another machine.
        if is_own or (self._board.rank == 0 and failure.rank not in self._neighbours.pids):
            return f"\n{head} The job ends.\n{failure.details}\n"
        return f"\nRank {self._board.rank} stops, because rank {failure.rank} cannot go on. {head}\n"
