"""How far an event loop falls behind, and which tools ran when it stood still."""

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_BEAT_S = 0.25
_LOOK_S = 0.5
_MAX_NAMES = 5
_EVERY_S = 300.0


class StandStills:
    """Which stand-stills of the loops of a runtime get a line: the first, then one every few minutes. Logs stay short.

    Args:
        every_s: Least seconds from one line to the next.
        clock: Returns seconds.
    """

    def __init__(self, every_s: float = _EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._next_s, self._num_silent = -math.inf, 0

    def take(self) -> int | None:
        """Count one; return how many got no line since the last one that did, or None if this gets none."""
        now = self._clock()
        if now < self._next_s:
            self._num_silent += 1
            return None
        self._next_s = now + self._every_s
        num_silent, self._num_silent = self._num_silent, 0
        return num_silent


class LoopWatch:
    """Beats in an event loop and measures how late the beats come. Make it inside the loop.

    A thread says so while the loop stands still. Where the interpreter itself is held, by one long operation in C, no
    thread runs either, and the first late beat says it afterwards.

    Args:
        tolerance_s: A beat that is later than this has the tools named that ran since the beat before.
        clock: Returns seconds.
        stand_stills: Says which get a line, over all loops that share it. None gives each a line.
    """

    def __init__(
        self,
        tolerance_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        stand_stills: StandStills | None = None,
    ) -> None:
        self._tolerance_s, self._clock = tolerance_s, clock
        self._stand_stills = stand_stills or StandStills(every_s=0.0)
        self._loop = asyncio.get_running_loop()
        self._running: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._has_told = False
        self._lag_s = 0.0
        self._stopped = threading.Event()
        self._expected = self._clock() + _BEAT_S
        self._handle = self._loop.call_later(_BEAT_S, self._beat)
        threading.Thread(target=self._look, name="aepo-loop-watch", daemon=True).start()

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Note that a tool runs where it can hold the loop up."""
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1
            self._ended.add(name)

    def take_lag_s(self) -> float:
        """Return the longest that the loop was late since this was last asked, in seconds."""
        lag_s, self._lag_s = max(self._lag_s, self._clock() - self._expected, 0.0), 0.0
        return lag_s

    def stop(self) -> None:
        """Beat no more. Calling it twice is allowed."""
        self._handle.cancel()
        self._stopped.set()

    def _beat(self) -> None:
        late_s = self._clock() - self._expected
        self._lag_s = max(self._lag_s, late_s)
        if late_s > self._tolerance_s and not self._has_told:
            self._tell(late_s)
        self._has_told = False
        self._ended.clear()
        self._expected = self._clock() + _BEAT_S
        self._handle = self._loop.call_later(_BEAT_S, self._beat)

    def _look(self) -> None:
        while not self._stopped.wait(_LOOK_S) and not self._loop.is_closed():
            late_s = self._clock() - self._expected
            if late_s > self._tolerance_s and not self._has_told:
                self._has_told = True
                self._tell(late_s)

    def _tell(self, late_s: float) -> None:
        num_silent = self._stand_stills.take()
        if num_silent is None:
            return
        names = sorted({name for name, number in list(self._running.items()) if number} | set(self._ended))
        who = ", ".join(f"Tool({name})" for name in names[:_MAX_NAMES]) or "no tool"
        what = "A plain function with isolation=process cannot do that." if names else "See what else runs here."
        others = f" It did so {num_silent} more times since the last such line." if num_silent else ""
        logger.warning(
            "The event loop of the rollouts has stood still for %.1f s, and every chain with it, while %s ran in this "
            "process, or the machine was busy. %s%s",
            late_s,
            who,
            what,
            others,
        )
