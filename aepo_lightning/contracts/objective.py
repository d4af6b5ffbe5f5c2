"""The mathematics of the update, token by token: what an objective looks at, what it answers, and its Protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveInput:
    """What a surrogate loss may look at. All tensors are aligned token by token."""

    logprobs: Float[Tensor, "batch response"]
    old_logprobs: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveOutput:
    """Per-token losses (not yet aggregated) and what to log about them."""

    token_losses: Float[Tensor, "batch response"]
    """Zero wherever the response mask is False."""
    metrics: Mapping[str, WeightedMean]


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns the rewards of one group into one advantage per trajectory."""

    def __call__(self, rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
        """Return one advantage per trajectory, in input order."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A surrogate loss, token by token."""

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        """Return the per-token losses and metrics about them."""
        ...
