"""How far an event loop falls behind, and which tools ran when it stood still."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_BEAT_S = 0.25
_LOOK_S = 0.5
_MAX_NAMES = 5


class LoopWatch:
    """Beats in an event loop and measures how late the beats come. Make it inside the loop.

    A thread says so while the loop stands still. Where the interpreter itself is held, by one long operation in C, no
    thread runs either, and the first late beat says it afterwards.

    Args:
        tolerance_s: A beat that is later than this has the tools named that ran since the beat before.
        clock: Returns seconds.
    """

    def __init__(self, tolerance_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._tolerance_s, self._clock = tolerance_s, clock
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
        names = sorted({name for name, number in list(self._running.items()) if number} | set(self._ended))
        who = ", ".join(f"Tool({name})" for name in names[:_MAX_NAMES]) or "no tool"
        logger.warning(
            "The event loop of the rollouts has stood still for %.1f s, and every chain with it, while %s ran in this "
            "process. A plain function with isolation=process cannot do that.",
            late_s,
            who,
        )
