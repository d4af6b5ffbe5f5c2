"""Who may call a tool now: slots with a bounded queue, a rate, and a circuit breaker. One desk per tool and loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiolimiter import AsyncLimiter

from aepo_lightning.circuit_breaker import CircuitBreaker, Permit
from aepo_lightning.contracts.tool import ToolLimits


class QueueFullError(Exception):
    """As many calls wait for a slot as may wait."""


class Desk:
    """Admits the calls of one tool in one event loop.

    Args:
        limits: Of the tool, with a number of slots and of places in the queue.
        breaker: Of what stands behind the tool, which other tools may share.
    """

    def __init__(self, limits: ToolLimits, breaker: CircuitBreaker) -> None:
        assert limits.max_concurrent_calls is not None, "the runtime has filled it in"
        self._slots = asyncio.Semaphore(limits.max_concurrent_calls)
        self._max_queued = limits.max_queued_calls
        self._num_queued = 0
        rate = limits.calls_per_second
        # A bucket of one second, but of one call at least, or no call would ever fit.
        self._rate = None if rate is None else AsyncLimiter(max(rate, 1.0), max(1.0, 1.0 / rate))
        self._breaker = breaker

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Permit]:
        """Wait for a slot and hold it; the block tells the permit how the call went.

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
            with self._breaker.permit() as permit:
                if self._rate is not None:
                    await self._rate.acquire()
                yield permit
        finally:
            self._slots.release()
