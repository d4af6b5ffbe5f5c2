"""One-step overlap: the next rollouts grow in a thread while the update runs.

The thread touches the engine, the tools and the journal, never the module. It takes part in no collective: weights are
published before it starts, by the trainer's thread.
"""

import asyncio
import contextlib
import copy
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from lightning import Trainer

from aepo_lightning.contracts.branching import PenalisedBranchPolicy
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.distributed.ranks import finishing, stop_on_signal, tick
from aepo_lightning.rollout import RolloutSampler, question_digest
from aepo_lightning.training.question_stream import RolloutOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitedRollout:
    """A rollout that was in flight when a state was saved."""

    stamp: str = ""
    """Of its trees; empty if it was cut off before all of them were there."""
    weights: WeightsStamp | None = None
    """What grew them; None in states that do not say so."""
    penalty: float | None = None
    """That of the branch policy, which may be another one meanwhile; None where it has none."""

    def to_plain(self) -> dict[str, Any]:
        """Return what `from_plain` reads, as plain values."""
        begun = None if self.weights is None else [self.weights.version, self.weights.digest, self.penalty]
        return {"in_flight": self.stamp, "in_flight_begun": begun}

    @classmethod
    def from_plain(cls, state: Mapping[str, Any]) -> "AwaitedRollout | None":
        """Return what a state says, alone or among other values; None if nothing was in flight."""
        if state.get("in_flight") is None:
            return None
        version, digest, penalty = state.get("in_flight_begun") or (None, "", None)
        weights = None if version is None else WeightsStamp(version=version, digest=digest)
        return cls(stamp=state["in_flight"], weights=weights, penalty=penalty)

    def sampler_of(self, sampler: RolloutSampler) -> RolloutSampler:
        """Return a sampler with the branch policy that the rollout had begun with."""
        found, policy = copy.copy(sampler), sampler.parts.branch_policy
        if self.penalty is not None and isinstance(policy, PenalisedBranchPolicy):
            found.parts = replace(sampler.parts, branch_policy=policy.with_penalty(self.penalty))
        return found


class RolloutInFlight:
    """A rollout that grows in a thread of its own."""

    def __init__(self, sampler: RolloutSampler, order: RolloutOrder, weights: WeightsStamp) -> None:
        """Start it.

        Args:
            sampler: Grows the trees. What is set on it later is for later rollouts.
            order: Which rollout.
            weights: What the engine generates with. They must stay until the rollout is over.
        """
        self.order = order
        self._sampler = copy.copy(sampler)
        self._weights = weights
        self._has_begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aepo-overlap")
        self._future: Future[list[RolloutTree]] = self._pool.submit(asyncio.run, self._grow())
        self._future.add_done_callback(lambda _: self._has_begun.set())
        forget = stop_on_signal(self.interrupt)
        self._future.add_done_callback(lambda _: forget())
        self._pool.shutdown(wait=False)  # takes no more work; the thread ends with the rollout

    async def _grow(self) -> list[RolloutTree]:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._has_begun.set()
        order = self.order
        return await self._sampler.rollout_async(
            order.questions, order.seed, order.name, lambda _: tick(), self._weights
        )

    def wait(self) -> list[RolloutTree]:
        """Return the trees once all are finished. What failed in the thread is raised here, with its own traceback."""
        return self._future.result()

    def awaited(self, stamp: str = "") -> AwaitedRollout:
        """Return what a state has to say of this rollout, whose trees have a stamp if they are all there."""
        policy = self._sampler.parts.branch_policy
        penalty = policy.penalty_per_step if isinstance(policy, PenalisedBranchPolicy) else None
        return AwaitedRollout(stamp=stamp, weights=self._weights, penalty=penalty)

    def cancel(self) -> None:
        """Stop the rollout and wait for the end of its thread. What is finished stays in the journal."""
        self.interrupt()
        self._pool.shutdown(wait=True)

    def interrupt(self) -> None:
        """Stop the rollout, without waiting for its end; who waits for it gets a `CancelledError`."""
        self._has_begun.wait()
        if not self._future.done() and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed a moment ago
                self._loop.call_soon_threadsafe(self._cancel_once)

    def _cancel_once(self) -> None:
        if self._task is not None and not self._task.cancelling():  # or it would not finish tidying up
            self._task.cancel()


class OverlappedRollouts:
    """At most one rollout in flight, and what a checkpoint has to know about it."""

    def __init__(self) -> None:
        """Start with none."""
        self._flight: RolloutInFlight | None = None
        self.awaited: AwaitedRollout | None = None
        """What is due: a checkpoint has waited for it, it was cut off, or it was taken and may not be used yet."""

    def start(self, sampler: RolloutSampler, order: RolloutOrder, weights: WeightsStamp) -> None:
        """Start the next rollout; the one before has been taken."""
        assert self._flight is None, "one at a time"
        with finishing():  # or a signal might leave a thread that nobody knows
            self._flight = RolloutInFlight(sampler, order, weights)

    def wait(self) -> None:
        """Wait for the rollout in flight, if there is one; the engine is free afterwards, and `state` waits no more."""
        if self._flight is not None:
            self._flight.wait()

    def take(self, sampler: RolloutSampler, order: RolloutOrder) -> list[RolloutTree] | None:
        """Return the trees of an order that was started, or that a checkpoint says were grown with older weights.

        Args:
            sampler: Has the journal that a continued run finds them in.
            order: The rollout that is due.

        Returns:
            None if the rollout was not started, or its trees are not all there. What `awaited` says of it stays.
        """
        if (flight := self._flight) is not None:
            self.awaited = flight.awaited()
            try:
                trees = flight.wait()
            finally:  # also where a signal ends this wait
                self._flight = None
                flight.cancel()
            self.awaited = flight.awaited(trees[0].stamp)
            return trees
        return None if self.awaited is None else _from_journal(sampler, order, self.awaited.stamp)

    def land(self, name: str) -> None:
        """Stop the rollout of this name if it is in flight, so that a state need not wait for it."""
        if (flight := self._flight) is not None and flight.order.name == name:
            self.awaited, self._flight = flight.awaited(), None
            flight.cancel()

    def interrupt(self) -> None:
        """Stop what is in flight, from another thread; who waits for it gets an error."""
        if self._flight is not None:
            self._flight.interrupt()

    def cancel(self) -> None:
        """Stop what is in flight and forget it."""
        flight, self._flight = self._flight, None
        self.awaited = None
        if flight is not None:
            flight.cancel()

    def state(self) -> dict[str, Any]:
        """Wait for the rollout in flight and return what a continued run needs to find its trees; plain values."""
        if self._flight is not None:
            return self._flight.awaited(self._flight.wait()[0].stamp).to_plain()
        return {} if self.awaited is None else self.awaited.to_plain()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned, alone or among other values."""
        self.cancel()
        self.awaited = AwaitedRollout.from_plain(state)


def _from_journal(sampler: RolloutSampler, order: RolloutOrder, stamp: str) -> list[RolloutTree] | None:
    journal = sampler.journal
    kept = {} if journal is None else {tree.question.question_id: tree for tree in journal.read_sound(order.name)}
    chat_format = sampler.parts.chat_format
    trees = [
        tree
        for question in order.questions
        if (tree := kept.get(question.question_id)) is not None
        and (tree.seed, tree.stamp) == (order.seed, stamp)
        and tree.question_digest == question_digest(question, chat_format)
    ]
    if len(trees) < len(order.questions):
        return None
    for tree, question in zip(trees, order.questions, strict=True):
        tree.question = question  # the journal has no documents
    return trees


def is_last_iteration(trainer: Trainer, num_steps: int) -> bool:
    """Return whether the trainer ends after the iteration that is about to run, as far as its settings tell.

    Args:
        trainer: Asks for the data of that iteration, one epoch.
        num_steps: Optimiser steps of an iteration.
    """
    progress = trainer.fit_loop.epoch_progress.current
    # In a checkpoint from the end of an epoch, that epoch counts as processed but not as completed.
    epoch = max(progress.processed, progress.completed)  # type: ignore[attr-defined]
    is_last_epoch = trainer.max_epochs not in (None, -1) and epoch + 1 >= (trainer.max_epochs or 0)
    return is_last_epoch or 0 <= trainer.max_steps <= trainer.global_step + num_steps


def staleness(trees: Sequence[RolloutTree], step: int) -> tuple[float, float]:
    """Return mean and maximum, over the trees of all ranks, of the optimiser steps since their weights. Collective.

    Args:
        trees: Of this rank.
        step: Optimiser steps that the trainer's weights have seen.
    """
    ages = [float(step - tree.weights_version) for tree in trees]
    total, count = all_reduce([sum(ages), float(len(ages))])
    return total / count, all_reduce([max(ages)], "max")[0]
