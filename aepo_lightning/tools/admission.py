"""Who may call a tool now: slots with a bounded queue, a rate, and a circuit breaker. One desk per tool and loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiolimiter import AsyncLimiter

from aepo_lightning.tool_spec import ToolLimits


class QueueFullError(Exception):
    """As many calls wait for a slot as may wait."""


class CircuitOpenError(Exception):
    """The tool failed too often in a row; it is left alone for a while."""


@dataclass(slots=True)
class CircuitBreaker:
    """Refuses calls for a while after failures in a row, then lets one through to see.

    Args:
        max_failures: Failures in a row that open the circuit. 0 never opens it.
        reset_s: How long it refuses.
        clock: Returns seconds.
    """

    max_failures: int
    reset_s: float
    clock: Callable[[], float] = time.monotonic
    num_failures: int = field(init=False, default=0)
    _opened_at: float | None = field(init=False, default=None)
    _is_trying: bool = field(init=False, default=False)

    def check(self) -> None:
        """Let a call pass.

        Raises:
            CircuitOpenError: If the circuit is open, or its one trial call is under way.
        """
        if self._opened_at is None:
            return
        if self._is_trying or self.clock() - self._opened_at < self.reset_s:
            raise CircuitOpenError
        self._is_trying = True

    def note(self, is_failure: bool) -> None:
        """Note whether what stands behind the tool failed, or works, whatever it thought of the call."""
        if not is_failure:
            self.num_failures, self._opened_at, self._is_trying = 0, None, False
            return
        self.num_failures += 1
        was_trying, self._is_trying = self._is_trying, False
        if was_trying or (self.max_failures and self.num_failures >= self.max_failures):
            self._opened_at = self.clock()

    def forget(self) -> None:
        """Let the next call try: this one has ended, perhaps without telling anything."""
        self._is_trying = False


class Desk:
    """Admits the calls of one tool in one event loop.

    Args:
        limits: Of the tool.
        max_concurrent_calls: Slots, if the tool's limits name none.
    """

    def __init__(self, limits: ToolLimits, max_concurrent_calls: int) -> None:
        self._slots = asyncio.Semaphore(limits.max_concurrent_calls or max_concurrent_calls)
        self._max_queued = limits.max_queued_calls
        self._num_queued = 0
        rate = limits.calls_per_second
        # A bucket of one second, but of one call at least, or no call would ever fit.
        self._rate = None if rate is None else AsyncLimiter(max(rate, 1.0), max(1.0, 1.0 / rate))
        self.breaker = CircuitBreaker(limits.breaker_failures, limits.breaker_reset_s)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Raises:
            QueueFullError: If too many wait already.
            CircuitOpenError: If the tool is left alone.
        """
        if self._max_queued is not None and self._slots.locked() and self._num_queued >= self._max_queued:
            raise QueueFullError
        self._num_queued += 1
        try:
            await self._slots.acquire()
        finally:
            self._num_queued -= 1
        try:
            self.breaker.check()
            try:
                if self._rate is not None:
                    await self._rate.acquire()
                yield
            finally:
                self.breaker.forget()
        finally:
            self._slots.release()
