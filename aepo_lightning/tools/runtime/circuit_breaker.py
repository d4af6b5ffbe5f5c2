"""Leaves a provider alone for a while when most of its calls fail."""

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
    """Refuses calls for a while when a large share of those in a window failed, then lets one through to see.

    A share and not a run of failures: calls that hang are cut off together, although others were answered meanwhile.

    Args:
        min_failures: Failures in the window that it takes at least. 0 never opens the circuit.
        reset_s: How long it refuses.
        share: Share of the calls in the window that must have failed.
        window_s: How far back calls count, by when they ended.
        clock: Returns seconds.
    """

    min_failures: int
    reset_s: float
    share: float
    window_s: float
    clock: Callable[[], float] = time.monotonic
    _spans: deque[_Span] = field(init=False, default_factory=deque)
    _opened_at: float | None = field(init=False, default=None)
    _is_trying: bool = field(init=False, default=False)

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """Let a call pass, and count what its permit says at the end.

        Raises:
            CircuitOpenError: If the circuit is open, or its one trial call is under way.
        """
        is_trial = self._opened_at is not None
        if self._opened_at is not None and (self._is_trying or self.clock() - self._opened_at < self.reset_s):
            raise CircuitOpenError
        self._is_trying = is_trial
        permit = Permit()
        try:
            yield permit
        finally:
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
        while self._spans and self._spans[0].start <= now - self.window_s:
            self._spans.popleft()
        if not self._spans or now - self._spans[-1].start >= self.window_s / _NUM_SPANS:
            self._spans.append(_Span(now))
        self._spans[-1].num_calls += 1
        self._spans[-1].num_failures += is_failure
        num_calls = sum(span.num_calls for span in self._spans)
        num_failures = sum(span.num_failures for span in self._spans)
        if self._opened_at is None and num_failures >= max(self.min_failures, self.share * num_calls):
            self._opened_at = now
