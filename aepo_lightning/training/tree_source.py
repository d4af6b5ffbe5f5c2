"""Where the trees of an iteration come from: grown with the present weights or, with overlap, beside the update."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.distributed.ranks import WorkApart
from aepo_lightning.event_loop import stop_event_loops
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.rollout import RolloutSampler
from aepo_lightning.rollout.progress import rollout_progress
from aepo_lightning.training.consistency import SharesTrainer
from aepo_lightning.training.engine_weights import EngineWeights, Probe
from aepo_lightning.training.overlap import AwaitedRollout, OverlappedRollouts
from aepo_lightning.training.question_stream import RolloutOrder
from aepo_lightning.training.trained_policy import TrainedPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The trainer at the time of a rollout."""

    module: TrainedPolicy
    step: int
    """Optimiser steps that the weights have seen."""
    is_writer: bool
    """Whether this rank writes what all ranks share."""
    probe: Probe

    @property
    def network(self) -> PolicyNetwork:
        """The network that is trained."""
        return self.module.trained_network()


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Which trees an iteration asks for, round by round, and which the next one does."""

    first: RolloutOrder
    further: Callable[[Sequence[RolloutTree]], RolloutOrder | None]
    """Given all trees of the iteration so far, the order of another round, or None. Collective."""
    next: Callable[[], RolloutOrder | None]
    """The first of the iteration after; None if the trainer ends before."""


@dataclass(slots=True, kw_only=True)
class TreeSource:
    """Gives the engine its weights and takes trees from it; ranks roll out apart from each other."""

    engine: Engine
    weights: EngineWeights
    overlap: OverlappedRollouts | None = None
    """None rolls out before the update."""
    is_shown: bool = field(default=False)
    """Whether this rank tells how many trees have grown."""

    def make_resumable(self, name: str) -> bool:
        """Stop what is in flight; return whether a state of now has all that a continued run needs.

        Overlapped rollouts that are cut off need the weights that they had begun with.

        Args:
            name: Of the rollout that is due.
        """
        if self.overlap is None:
            return True
        self.overlap.land(name)
        awaited = self.overlap.awaited
        return awaited is not None and (bool(awaited.stamp) or self.weights.is_archived(awaited.weights))

    def wait(self) -> None:
        """Wait for the rollout in flight, if there is one. A rank that is cut off calls the others back from it."""
        if self.overlap is not None:
            with WorkApart(self.overlap.interrupt, self._settle):
                self.overlap.wait()

    def publish(self, moment: Moment) -> None:
        """Give the engine the present weights, unless it has them."""
        if not self.weights.has(moment.step):
            if self.overlap is not None:
                self.overlap.wait()
            self.weights.publish(moment.module, moment.step, moment.probe)

    def forget(self) -> None:
        """Stop what is in flight, and have the weights published before the next rollout."""
        if self.overlap is not None:
            self.overlap.cancel()
        self.weights.forget()

    def rest(self) -> None:
        """Let the engine free what the update needs; the weights must be published again before the next rollout.

        With overlap nothing is freed, but what is generated next still starts from an empty prefix cache.
        """
        if self.overlap is None:
            self.engine.sleep()
        self.weights.forget()

    def take(
        self,
        moment: Moment,
        sampler: RolloutSampler,
        orders: Orders,
        publish: Callable[[], None],
    ) -> list[RolloutTree]:
        """Return the trees of an iteration and, with overlap, start those of the next one.

        Args:
            moment: The present.
            sampler: Grows the trees.
            orders: Which trees are due.
            publish: Publishes the present weights, as `publish` does.
        """
        order = orders.first
        ready = None if self.overlap is None else self._take_awaited(self.overlap, moment, sampler, order)
        if self.overlap is not None:
            self.rest()  # prefixes that validation has cached would change the last bits
        publish()
        self.weights.archive_present(moment.network, moment.step, moment.is_writer)
        with WorkApart(stop_event_loops, self._settle):
            trees = self.rollout(sampler, order) if ready is None else ready
        has_grown = ready is None
        while (further := orders.further(trees)) is not None:
            with WorkApart(stop_event_loops, self._settle):
                trees = trees + self.rollout(sampler, further)
            has_grown = True
        if has_grown:
            self.rest()
        if self.overlap is not None:
            self._start_next(self.overlap, sampler, orders.next(), publish)
        return trees

    def _start_next(
        self,
        overlap: OverlappedRollouts,
        sampler: RolloutSampler,
        order: RolloutOrder | None,
        publish: Callable[[], None],
    ) -> None:
        overlap.awaited = None
        if order is not None:
            publish()
            assert self.weights.stamp is not None, "published above"
            overlap.start(sampler, order, self.weights.stamp)

    def _take_awaited(
        self, overlap: OverlappedRollouts, moment: Moment, sampler: RolloutSampler, order: RolloutOrder
    ) -> list[RolloutTree] | None:
        """Return the trees that grew beside the update, or were to grow in the run that this one continues."""
        with WorkApart(overlap.interrupt, self._settle):
            ready = overlap.take(sampler, order)
        awaited = overlap.awaited
        num_missing = 0.0 if awaited is None else all_reduce([float(ready is None)])[0]
        if not num_missing or awaited is None or not self._can_be_finished(awaited, order.name):
            return ready
        assert awaited.weights is not None, "or it could not be finished"
        self.weights.publish_archived(awaited.weights, moment.probe)
        with WorkApart(stop_event_loops, self._settle):
            return self.rollout(awaited.sampler_of(sampler), order, awaited.weights) if ready is None else ready

    def _can_be_finished(self, awaited: AwaitedRollout, name: str) -> bool:
        if not all_reduce([float(not self.weights.is_archived(awaited.weights))], "max")[0]:
            return True
        logger.warning(
            "The journal lacks trees of %s that the checkpoint waited for, and their weights were not kept, so they "
            "are grown with the present weights: this iteration is not that of the run which was stopped.",
            name,
        )
        return False

    def _settle(self) -> None:
        """Let an engine that shares this process serve other ranks before this one waits for them."""
        if isinstance(self.engine, SharesTrainer):
            self.engine.settle()

    def rollout(
        self, sampler: RolloutSampler, order: RolloutOrder, weights: WeightsStamp | None = None
    ) -> list[RolloutTree]:
        """Grow the trees of an order with what the engine has.

        Args:
            sampler: Grows them.
            order: Which.
            weights: Names what the engine has. Default: what was published last.
        """
        with rollout_progress(order.name, len(order.questions), self.is_shown) as count:
            return sampler.rollout(order.questions, order.seed, order.name, count, weights or self.weights.stamp)
