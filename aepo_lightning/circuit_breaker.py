"""Leaves a provider alone for a while when most of its calls fail."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_NUM_SPANS = 20
"""The window moves on in steps of this part of it."""


class CircuitOpenError(Exception):
    """Too many calls failed; the provider is left alone for a while."""


@dataclass(slots=True)
class Permit:
    """Leave to make one call, and what came of it."""

    is_failure: bool | None = None
    """Whether the infrastructure failed. None where the call ended before anybody knew, such as when cancelled."""


@dataclass(slots=True)
class _Span:
    """The calls that ended in a short span of time."""

    start: float
    num_calls: int = 0
    num_failures: int = 0


@dataclass(slots=True)
class CircuitBreaker:
    """Refuses calls for a while when many of the last ones failed, then lets one through to see.

    Counts the share of failures in a window where a provider may answer some calls and hang at others: those are cut
    off together, although others were answered meanwhile. Counts a run of failures where one that works fails at none.
    Threads may share it.

    Args:
        min_failures: Failures in the window that it takes at least. 0 never opens the circuit.
        reset_s: How long it refuses.
        share: Share of the calls in the window that must have failed. None: all since the last one that did not.
        window_s: How far back calls count, by when they ended.
        clock: Returns seconds.
    """

    min_failures: int
    reset_s: float
    share: float | None
    window_s: float
    clock: Callable[[], float] = time.monotonic
    _spans: deque[_Span] = field(init=False, default_factory=deque)
    _opened_at: float | None = field(init=False, default=None)
    _is_trying: bool = field(init=False, default=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False, compare=False)

    def check(self) -> None:
        """Refuse a call that could not pass now, before it waits for anything.

        Raises:
            CircuitOpenError: If the circuit is open, or its one trial call is under way.
        """
        opened_at = self._opened_at
        if opened_at is not None and (self._is_trying or self.clock() - opened_at < self.reset_s):
            raise CircuitOpenError

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """Let a call pass, and count what its permit says at the end.

        Raises:
            CircuitOpenError: If the circuit is open, or its one trial call is under way.
        """
        with self._lock:
            self.check()
            is_trial = self._is_trying = self._opened_at is not None
        permit = Permit()
        try:
            yield permit
        finally:
            with self._lock:
                if is_trial:
                    self._end_trial(permit)
                elif permit.is_failure is not None and self.min_failures:
                    self._count(permit.is_failure)

    def _end_trial(self, permit: Permit) -> None:
        self._is_trying = False
        if permit.is_failure is False:
            self._opened_at = None
            self._spans.clear()
        elif permit.is_failure:
            self._opened_at = self.clock()

    def _count(self, is_failure: bool) -> None:
        now = self.clock()
        if self.share is None and not is_failure:
            self._spans.clear()
            return
        while self._spans and self._spans[0].start <= now - self.window_s:
            self._spans.popleft()
        if not self._spans or now - self._spans[-1].start >= self.window_s / _NUM_SPANS:
            self._spans.append(_Span(now))
        self._spans[-1].num_calls += 1
        self._spans[-1].num_failures += is_failure
        num_calls = sum(span.num_calls for span in self._spans)
        num_failures = sum(span.num_failures for span in self._spans)
        if self._opened_at is None and num_failures >= max(self.min_failures, (self.share or 0.0) * num_calls):
            self._opened_at = now
