"""Who gets a worker next: a bounded queue for calls of any number of event loops, in any number of threads."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aepo_lightning.tools.jail.execution import PoolBusyError, PoolUnavailableError

T = TypeVar("T")


@dataclass(eq=False)
class _Waiter(Generic[T]):
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[None]"
    lease: "Lease[T] | None" = None
    error: Exception | None = None

    def wake(self) -> bool:
        """Tell its loop; return whether that is there: one that was closed will never give a lease back."""
        try:
            self.loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # closed
            return False
        return True

    def _settle(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


@dataclass(eq=False)
class Lease(Generic[T]):
    """The right to use one worker."""

    worker: T
    _on_demote: Callable[[], None]
    _is_active: bool = field(default=True, init=False)

    def demote(self) -> None:
        """Stop counting as active, so that another call may start on another worker."""
        if self._is_active:
            self._is_active = False
            self._on_demote()


class SlotQueue(Generic[T]):
    """Hands out workers in the order in which they are asked for.

    At most `max_active` leases count as active at a time. A call that turns out to be long is demoted, after which it
    keeps its worker and no longer holds others up.

    Args:
        max_active: Leases that may be active at a time.
        max_waiting: Calls that may wait.
    """

    def __init__(self, *, max_active: int, max_waiting: int) -> None:
        self._lock = threading.RLock()
        self._max_active, self._max_waiting = max_active, max_waiting
        self._num_active = 0
        self._idle: deque[T] = deque()
        self._waiters: deque[_Waiter[T]] = deque()
        self._error: Exception | None = None
        self._outage: str | None = None

    @property
    def num_waiting(self) -> int:
        """Calls that wait now."""
        return len(self._waiters)

    async def acquire(self) -> Lease[T]:
        """Wait for a worker.

        Returns:
            A lease, to be ended by `release`.

        Raises:
            PoolBusyError: If too many wait already.
            PoolUnavailableError: If there is no worker, and none can be started at the moment.
            Exception: What `fail` was given.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter[T](loop, loop.create_future())
        with self._lock:
            if self._error:
                raise self._error
            if self._outage is not None:
                raise PoolUnavailableError(self._outage)
            self._waiters.append(waiter)
            self._match()
            if waiter.lease:
                return waiter.lease
            if len(self._waiters) > self._max_waiting:
                self._waiters.remove(waiter)
                raise PoolBusyError(f"The tool is busy: {self._max_waiting} calls wait already. Try again later.")
        try:
            await waiter.future
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        if waiter.error:
            raise waiter.error
        assert waiter.lease is not None, "a waiter is woken with a lease or an error"
        return waiter.lease

    def add(self, worker: T) -> None:
        """Offer a worker that no lease holds. Calls are taken again if there was none."""
        with self._lock:
            self._outage = None
            self._idle.append(worker)
            self._match()

    def release(self, lease: Lease[T], *, is_usable: bool) -> None:
        """End a lease.

        Args:
            lease: The lease.
            is_usable: Whether its worker can serve the next call. If not, it is the caller's to repair and to `add`.
        """
        lease.demote()
        if is_usable:
            self.add(lease.worker)

    def fail(self, error: Exception) -> None:
        """Refuse all calls that wait and all later ones."""
        with self._lock:
            self._error = error
            self._refuse_waiting(lambda: error)

    def suspend(self, reason: str) -> None:
        """Refuse all calls that wait and later ones until a worker is added; nothing happens if one is idle."""
        with self._lock:
            if not self._idle:
                self._outage = reason
                self._refuse_waiting(lambda: PoolUnavailableError(reason))

    def _refuse_waiting(self, error: Callable[[], Exception]) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.error = error()
            waiter.wake()

    def _withdraw(self, waiter: _Waiter[T]) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.lease:
                self.release(waiter.lease, is_usable=True)

    def _match(self) -> None:
        while self._idle and self._waiters and self._num_active < self._max_active:
            waiter = self._waiters.popleft()
            self._num_active += 1
            # The worker used last has the warmest caches.
            waiter.lease = Lease(self._idle.pop(), self._count_demotion)
            if not waiter.wake():
                self._num_active -= 1
                self._idle.append(waiter.lease.worker)

    def _count_demotion(self) -> None:
        with self._lock:
            self._num_active -= 1
            self._match()
