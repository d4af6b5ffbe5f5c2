"""Calls that ask the same thing at the same time, made once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    num_waiting: int = 0


class SingleFlight(Generic[T]):
    """Shares work among those who ask for it under the same key while it runs. Belongs to one event loop.

    The work goes on while anybody waits for it, and is cancelled with the last who does.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return what `work` returns, or what is being worked out for the same key.

        Args:
            key: Names the work.
            work: Starts it, if nobody has.

        Returns:
            The outcome, and whether somebody else had asked first.
        """
        flight = self._flights.get(key)
        is_shared = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(_call(work)))
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.num_waiting += 1
        try:
            return await asyncio.shield(flight.task), is_shared
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        # A cancelled flight may end after another one has started under its key.
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _call(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
