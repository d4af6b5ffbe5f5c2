"""What updates say about their expectation: direction, bias and noise, each with a standard error.

A square of an estimated mean is too large by the variance of the mean, so squares are corrected by it. Without that a
small sample would make every algorithm look biased.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.support.laboratory.updates import Updates

NUM_BATCHES = 20
"""Parts that the jackknife leaves out, one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    @property
    def deviations(self) -> float:
        """How many standard errors the number is from 0."""
        return self.value / self.error if self.error > 0 else math.copysign(math.inf, self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """An algorithm at one policy."""

    cosine: Estimate
    """Between the expected update and the true gradient of the mean reward over the quests."""
    squared_bias: Estimate
    """|g - c g*|^2 / |c g*|^2 for the best scalar c. 0 for an update that is right up to a factor."""
    squared_bias_within: Estimate
    """The same with a scalar for each quest: what is wrong within quests, apart from how they are weighed."""
    scales: tuple[Estimate, ...]
    """c of each quest."""
    tokens_per_unit: float
    """Generated tokens after which the noise of the mean update is as large as its part along the true gradient."""
    calls_per_unit: float
    """Tool calls, likewise."""
    value_biases: tuple[Estimate, ...]
    """Expected estimate of each quest's value less the value."""
    num_tokens: float
    """Per question."""
    num_calls: float

    @property
    def bias(self) -> float:
        """Relative bias: root of `squared_bias`, 0 where noise has made it negative."""
        return math.sqrt(max(0.0, self.squared_bias.value))

    @property
    def bias_within(self) -> float:
        """Relative bias within quests."""
        return math.sqrt(max(0.0, self.squared_bias_within.value))


def describe(updates: Sequence[Updates], truths: Sequence[Tensor], values: Sequence[float]) -> Figures:
    """Return what the updates of some quests say.

    Args:
        updates: Of each quest, equally many.
        truths: The true gradient of each quest, flat.
        values: The true expected reward of each quest.
    """
    rows = torch.stack([each.gradients for each in updates])
    targets = torch.stack(list(truths))
    mixed, target = rows.mean(0), targets.mean(0)
    noise = _noise(mixed, target)
    return Figures(
        cosine=jackknife(mixed, lambda found: _parts(found, target).cosine),
        squared_bias=jackknife(mixed, lambda found: _parts(found, target).squared_bias),
        squared_bias_within=jackknife(rows.transpose(0, 1), lambda found: _bias_within(found, targets)),
        scales=tuple(mean_of(own @ aim / aim.square().sum()) for own, aim in zip(rows, targets, strict=True)),
        tokens_per_unit=noise * sum(float(each.num_tokens.mean()) for each in updates),
        calls_per_unit=noise * sum(float(each.num_calls.mean()) for each in updates),
        value_biases=tuple(mean_of(each.values - value) for each, value in zip(updates, values, strict=True)),
        num_tokens=sum(float(each.num_tokens.mean()) for each in updates) / len(updates),
        num_calls=sum(float(each.num_calls.mean()) for each in updates) / len(updates),
    )


def mean_of(values: Float[Tensor, " steps"]) -> Estimate:
    """Return the mean of independent numbers."""
    return Estimate(value=float(values.mean()), error=float(values.std() / math.sqrt(len(values))))


def jackknife(rows: Tensor, statistic: Callable[[Tensor], float]) -> Estimate:
    """Return a statistic of independent rows, with the jackknife's standard error."""
    count = min(NUM_BATCHES, len(rows))
    owner = torch.arange(len(rows)) * count // len(rows)
    left = torch.tensor([statistic(rows[owner != batch]) for batch in range(count)], dtype=torch.float64)
    error = math.sqrt((count - 1) * float((left - left.mean()).square().mean()))
    return Estimate(value=statistic(rows), error=error)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Squared lengths of a mean, along a target and across it, corrected for the noise of the mean."""

    along: float
    across: float
    sign: float

    @property
    def cosine(self) -> float:
        total = self.along + self.across
        return self.sign * math.sqrt(max(0.0, self.along) / total) if total > 0 and self.along > 0 else 0.0

    @property
    def squared_bias(self) -> float:
        return self.across / self.along if self.along > 0 else math.inf


def _parts(rows: Float[Tensor, "steps parameters"], target: Float[Tensor, " parameters"]) -> _Parts:
    unit = target / target.norm()
    along = rows @ unit
    mean, variance = along.mean(), along.var() / len(rows)
    total = rows.mean(0).square().sum() - rows.var(0).sum() / len(rows)
    own = mean.square() - variance
    return _Parts(float(own), float(total - own), math.copysign(1.0, float(mean)))


def _bias_within(rows: Float[Tensor, "steps quests parameters"], targets: Float[Tensor, "quests parameters"]) -> float:
    parts = [_parts(rows[:, quest], target) for quest, target in enumerate(targets)]
    along = sum(each.along for each in parts)
    return sum(each.across for each in parts) / along if along > 0 else math.inf


def _noise(rows: Float[Tensor, "steps parameters"], target: Float[Tensor, " parameters"]) -> float:
    """Return the trace of the covariance of an update over the square of its mean along the target."""
    along = _parts(rows, target).along
    return float(rows.var(0).sum()) / along if along > 0 else math.inf
