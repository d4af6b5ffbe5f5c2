"""The mathematics of the update: what advantages, credit and objectives look at, what they answer, their Protocols."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, no_type_check, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.contracts.blame import call_part, is_own, part_name
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import Leaf, RolloutTree, Segment
from aepo_lightning.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveInput:
    """What a surrogate loss may look at. All tensors are aligned token by token."""

    logprobs: Float[Tensor, "batch response"]
    old_logprobs: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    old_entropies: Float[Tensor, "batch response"] | None = None
    """Of the distributions that the tokens came from, before the update, in nats. None where nobody has scored them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedMean:
    """A mean kept as numerator and denominator, so that it adds up exactly over micro-batches and ranks."""

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        """Return the mean over both sets."""
        return WeightedMean(total=self.total + other.total, weight=self.weight + other.weight)

    def value(self) -> float:
        """Return the mean, or 0 for an empty set."""
        return float(self.total / self.weight) if float(self.weight) > 0 else 0.0


@no_type_check  # authors write what they have; `evaluate_objective` looks at it where it arrives
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveOutput:
    """Per-token losses (not yet aggregated) and what to log about them."""

    token_losses: Float[Tensor, "batch response"]
    """Zero wherever the response mask is False."""
    metrics: Mapping[str, WeightedMean]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardGroup:
    """The trajectories of one question that have a reward: what advantages and credit are made of."""

    tree: RolloutTree
    leaves: Sequence[Leaf]
    """Of the tree, those with a reward, in order. At least one."""
    rewards: Float[Tensor, " group"]
    weights: Float[Tensor, " group"]
    """How much each trajectory counts; 1 on average."""

    @property
    def roots(self) -> list[int]:
        """For each trajectory, the number of the root chain that it descends from; those of one chain share it."""
        chains = [leaf.seed_path[:2] for leaf in self.leaves]
        numbers = {chain: number for number, chain in enumerate(dict.fromkeys(chains))}
        return [numbers[chain] for chain in chains]

    @property
    def turns(self) -> list[list[Segment]]:
        """For each trajectory, the segments on its path that the policy sampled, in order."""
        paths = [self.tree.path(leaf.segment_id) for leaf in self.leaves]
        return [[segment for segment in path if segment.source is SegmentSource.POLICY] for path in paths]


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns the rewards of one group into one advantage per trajectory.

    One that has a parameter `weights` is given how much each trajectory counts (a tensor, 1 on average; None where all
    count the same), one that has a parameter `roots` the number of the root chain of each trajectory (a list; branches
    of one chain share its number). Both by name.
    """

    def __call__(self, rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
        """Return one advantage per trajectory, in input order."""
        ...


@runtime_checkable
class Credit(Protocol):
    """Gives each turn of a trajectory its own advantage."""

    def __call__(self, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
        """Return, for each trajectory of the group, one advantage for each policy segment on its path, in order.

        Args:
            group: Trajectories, their rewards and their tree.
            advantages: What the estimator gave each trajectory.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """A surrogate loss, token by token."""

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        """Return the per-token losses and metrics about them."""
        ...


def evaluate_objective(objective: Objective, inputs: ObjectiveInput) -> ObjectiveOutput:
    """Return what an objective answers; of one that a user wrote, checked.

    Token losses alone, without metrics, are an answer as well, and a metric may be any number.

    Raises:
        TrainingError: If the objective raises, or its answer is not one finite loss for each token, with a gradient
            where the log-probs have one. It names the objective.
    """
    if is_own(objective):
        return objective(inputs)
    answer: object = call_part("objective", objective, lambda: objective(inputs))
    losses, metrics = (answer.token_losses, answer.metrics) if isinstance(answer, ObjectiveOutput) else (answer, {})
    _check_losses(objective, losses, inputs)
    assert isinstance(losses, Tensor), "it was checked"
    means = {name: _as_mean(objective, name, value, losses) for name, value in metrics.items()}
    return ObjectiveOutput(token_losses=losses, metrics=means)


def _check_losses(objective: Objective, losses: object, inputs: ObjectiveInput) -> None:
    shape = tuple(inputs.logprobs.shape)
    if not isinstance(losses, Tensor):
        found = f"got {type(losses).__name__} {losses!r:.80}"
        raise _refusal(objective, "return an `ObjectiveOutput` or a tensor of token losses", found)
    if tuple(losses.shape) != shape or not losses.is_floating_point():
        found = f"got {losses.dtype} of shape {tuple(losses.shape)}"
        raise _refusal(objective, f"return a loss for each token, floats of shape {shape}", found)
    if inputs.logprobs.requires_grad and not losses.requires_grad:
        raise _refusal(objective, "return losses with a gradient", "they do not depend on `logprobs`")
    inside = torch.where(inputs.response_mask, losses.detach(), 0.0)
    given = (inputs.logprobs, inputs.old_logprobs, inputs.advantages)
    is_given_finite = all(bool(torch.isfinite(each.detach()).all()) for each in given)
    if is_given_finite and not bool(torch.isfinite(inside).all()):
        raise _refusal(objective, "return finite losses for finite log-probs and advantages", "some are not")


def _as_mean(objective: Objective, name: object, value: object, like: Tensor) -> WeightedMean:
    """Return a metric as a mean; a number counts once for each micro-batch."""
    if isinstance(value, WeightedMean):
        return value
    is_number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
    if not is_number or not isinstance(name, str):
        raise _refusal(objective, "return metrics that are numbers or `WeightedMean`s", f"{name!r} is {value!r:.80}")
    total = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().reshape(())
    return WeightedMean(total=total, weight=torch.ones_like(total))


def _refusal(objective: Objective, rule: str, found: str) -> TrainingError:
    return TrainingError(f"The objective `{part_name(objective)}` must {rule}, but {found}.")
