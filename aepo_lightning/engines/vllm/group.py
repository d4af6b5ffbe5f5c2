"""Tensor-parallel groups: several ranks that hold one model together and must step alike.

Each rank of a group has its own chains and its own event loop, but vLLM's scheduler runs on all of them and must see
the same requests in the same order. Before every step the ranks exchange what is new; every rank then adds and aborts
the requests of all, in rank order, and takes the same step. Outputs of other ranks' requests are ignored.

A rank without requests of its own keeps stepping for the others: in its event loop while its rollout goes on, and in
`settle`, which `sleep` and `load_weights` call, until all ranks of the group have arrived there. Between the last
token of a rollout and `sleep`, no rank may wait for another in any other way.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch.distributed as dist

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.errors import EngineError, boundary

TIMEOUT_S = 600.0
"""How long a rank may be silent, such as in a reward that is computed in its event loop, before the others give up."""
PAUSE_S = 0.002
"""Between exchanges while no rank of the group has requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNews:
    """What one rank tells its group before a step."""

    added: tuple[tuple[str, tuple[int, ...], SamplingParams], ...] = ()
    aborted: tuple[str, ...] = ()
    has_arrived: bool = False
    """Whether the rank has no requests of its own until all have arrived."""
    failure: str = ""
    """Why the rank goes no further."""


@runtime_checkable
class Stepper(Protocol):
    """What is kept alike on all ranks; names of requests are unique within the group."""

    def add(self, name: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue one request."""
        ...

    def abort(self, name: str) -> None:
        """Forget one request, if it is still there."""
        ...

    def step(self) -> list[Any]:
        """Compute one token for the running requests and return the outputs."""
        ...

    def num_unfinished(self) -> int:
        """Return how many requests are left."""
        ...


class Lockstep:
    """A stepper whose ranks do the same, at the same time."""

    def __init__(self, stepper: Stepper, exchange: Callable[[StepNews], Sequence[StepNews]]) -> None:
        """Wrap the stepper of this rank.

        Args:
            stepper: What computes, collectively with the other ranks.
            exchange: Sends the news of this rank and returns those of all in rank order. Blocks until all have sent.
        """
        self._stepper = stepper
        self._exchange = exchange
        self._added: list[tuple[str, tuple[int, ...], SamplingParams]] = []
        self._aborted: list[str] = []
        self._failure = ""
        self.is_serving = False
        """Whether other ranks count on this one's next exchange: since the first request after `settle`."""

    @property
    def is_idle(self) -> bool:
        """Whether no rank had requests at the last exchange."""
        return self._stepper.num_unfinished() == 0

    def add(self, name: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue one request for the next exchange.

        Raises:
            EngineError: If the group has failed.
        """
        self._raise_failure()
        self.is_serving = True
        self._added.append((name, tuple(prompt_ids), params))

    def abort(self, name: str) -> None:
        """Forget one request at the next exchange."""
        waiting = [request for request in self._added if request[0] != name]
        if len(waiting) == len(self._added):
            self._aborted.append(name)
        self._added = waiting

    def num_unfinished(self) -> int:
        """Return how many requests of all ranks are left."""
        return len(self._added) + self._stepper.num_unfinished()

    def step(self) -> list[Any]:
        """Exchange, then step if any rank has requests; return the outputs of all ranks' requests.

        Raises:
            EngineError: If this rank or another failed, or one is silent for `TIMEOUT_S`.
        """
        self._meet(has_arrived=False)
        return self._step()

    def settle(self) -> None:
        """Serve the other ranks until all of them have arrived here. This rank must have no requests of its own.

        Raises:
            EngineError: If this rank or another failed, or one is silent for `TIMEOUT_S`.
        """
        while not self._meet(has_arrived=True):
            if self.is_idle:
                time.sleep(PAUSE_S)
            self._step()
        self.is_serving = False

    def close(self) -> None:
        """Let ranks that still count on this one know that it is gone."""
        if self.is_serving:
            self._tell("its engine was closed before `sleep`.")

    def _meet(self, has_arrived: bool) -> bool:
        """Exchange and do as all ranks ask; return whether all have arrived."""
        self._raise_failure()
        own = StepNews(added=tuple(self._added), aborted=tuple(self._aborted), has_arrived=has_arrived)
        self._added, self._aborted = [], []
        with boundary(self._lose_group):
            news = self._exchange(own)
        failures = [f"rank {rank} of the group: {each.failure}" for rank, each in enumerate(news) if each.failure]
        if failures:
            self._fail(f"Another rank of the tensor-parallel group failed; {' '.join(failures)}")
        for each in news:
            for name in each.aborted:
                self._stepper.abort(name)
            for name, prompt_ids, params in each.added:
                self._stepper.add(name, prompt_ids, params)
        return all(each.has_arrived for each in news)

    def _step(self) -> list[Any]:
        if self.is_idle:
            return []
        with boundary(self._step_failed):
            return self._stepper.step()
        return []

    def _step_failed(self, cause: Exception) -> None:
        self._tell(str(cause))
        raise cause

    def _tell(self, failure: str) -> None:
        self._failure, self.is_serving = failure, False
        with boundary(lambda _: None):  # who does not answer is lost as well, and what is wrong here matters more
            self._exchange(StepNews(failure=failure))

    def _lose_group(self, cause: Exception) -> None:
        self._fail(
            f"The tensor-parallel group lost a rank, or one was silent for {TIMEOUT_S:.0f} s: {cause!r}. Look for the "
            "first error of the other ranks.",
            cause,
        )

    def _fail(self, failure: str, cause: Exception | None = None) -> None:
        self._failure, self.is_serving = failure, False
        raise EngineError(failure) from cause

    def _raise_failure(self) -> None:
        if self._failure:
            raise EngineError(self._failure)


class GroupExchange:
    """Exchanges news among consecutive ranks of the job; the first call is collective over all ranks."""

    def __init__(self, size: int, timeout_s: float = TIMEOUT_S) -> None:
        """Keep the settings.

        Args:
            size: Ranks of one group; must divide the number of ranks.
            timeout_s: How long a call waits for the slowest rank.
        """
        self._size = size
        self._timeout = timedelta(seconds=timeout_s)
        self._group: Any = None

    def __call__(self, own: StepNews) -> list[StepNews]:
        """Return the news of the group in rank order."""
        if self._group is None:
            self._group = self._make_group()
        news: list[Any] = [None] * self._size
        dist.all_gather_object(news, own, group=self._group)
        return news

    def _make_group(self) -> Any:
        first = dist.get_rank() // self._size * self._size
        own = None
        for start in range(0, dist.get_world_size(), self._size):
            group = dist.new_group(list(range(start, start + self._size)), timeout=self._timeout, backend="gloo")
            own = group if start == first else own
        return own
