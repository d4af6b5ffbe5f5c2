"""How long rollouts wait with nothing for the engine to generate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter


@dataclass(slots=True, kw_only=True)
class GenerationClock:
    """Sums the time of finished rollouts, and of it the time in which no generation was in flight."""

    clock: Callable[[], float] = perf_counter
    idle_s: float = 0.0
    total_s: float = 0.0
    _busy_s: float = field(default=0.0, init=False)
    _num_in_flight: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Count a rollout, once it is finished. There is one at a time."""
        start, busy_s = self.clock(), self._busy_s
        yield
        duration_s = self.clock() - start
        self.total_s += duration_s
        self.idle_s += max(duration_s - (self._busy_s - busy_s), 0.0)

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Mark a generation as in flight."""
        if not self._num_in_flight:
            self._since = self.clock()
        self._num_in_flight += 1
        try:
            yield
        finally:
            self._num_in_flight -= 1
            if not self._num_in_flight:
                self._busy_s += self.clock() - self._since

    def take(self) -> tuple[float, float]:
        """Return idle and total seconds since the last time that they were taken."""
        taken = (self.idle_s, self.total_s)
        self.idle_s = self.total_s = 0.0
        return taken
