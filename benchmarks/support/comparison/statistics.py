"""Statistics of few runs: interquartile means, stratified bootstrap, probability of improvement, paired tests, Holm.

Scores come as strata: for each bed an array with one score for each seed, or with one difference for each seed that two
algorithms share. Everything random has a fixed seed, so that a table can be made again.

References:
    Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv:2108.13264, sections 4.1 to 4.3; its
    probability of improvement compares all runs of a task, `paired_improvement` those of the same seed. Holm, A simple
    sequentially rejective multiple test procedure, 1979.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Strata = Sequence[Scores]
"""For each bed its scores."""

RESAMPLES = 5_000
"""Of a bootstrap: the ends of a 95 % interval then move by less than a twentieth of its width."""
FLIPS = 20_000
"""Of a sign-flip test with too many pairs to try all signs."""
MOST_EXACT = 14
"""Pairs up to which all signs are tried."""


class Statistic(Protocol):
    """A number of the pooled scores, along the last axis."""

    def __call__(self, scores: Scores, /) -> Scores:
        """Return the number, for each row."""


def mean(scores: Scores) -> Scores:
    """Return the mean along the last axis."""
    return np.asarray(scores.mean(axis=-1))


def interquartile_mean(scores: Scores) -> Scores:
    """Return the mean of what is left along the last axis without the lowest and the highest quarter, rounded down.

    Fewer than four scores are averaged as they are.
    """
    cut = scores.shape[-1] // 4
    kept = np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut]
    return np.asarray(kept.mean(axis=-1))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with an interval."""

    value: float
    low: float
    high: float


def bootstrap(
    strata: Strata, statistic: Statistic = interquartile_mean, level: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Return a statistic of all scores and its percentile interval, seeds drawn anew within each bed.

    Args:
        strata: Of each bed, at least one score.
        statistic: Of the pooled scores. The interval is that of the same number.
        level: Share of resamples within the interval.
        resamples: How many.

    Raises:
        ValueError: If there is no score.
    """
    present = [scores for scores in strata if scores.size]
    if not present:
        raise ValueError("`strata` must hold a score, but got none. Compare algorithms that have runs.")
    random = np.random.default_rng(0)
    drawn = [scores[random.integers(scores.size, size=(resamples, scores.size))] for scores in present]
    found = statistic(np.concatenate(drawn, axis=1))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(np.concatenate(present))), float(low), float(high))


def probability_of_improvement(treated: Strata, control: Strata) -> float:
    """Return the mean over beds of P(X > Y) + P(X = Y) / 2 for a run X of `treated` and a run Y of `control`."""
    shares = [_share_above(x[:, None] - y[None, :]) for x, y in zip(treated, control, strict=True)]
    return float(np.mean(shares))


def paired_improvement(differences: Strata) -> float:
    """Return the mean over beds of the share of seeds whose difference is positive, ties counted as one half."""
    return float(np.mean([_share_above(each) for each in differences if each.size]))


def _share_above(differences: Scores) -> float:
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def sign_flip_p(differences: Strata, statistic: Statistic = interquartile_mean) -> float:
    """Return the two-sided p-value of a paired sign-flip test: how often random signs give so large a statistic.

    All signs are tried for up to `MOST_EXACT` pairs, else `FLIPS` random ones, the observed ones among them.

    Args:
        differences: Of each bed. They are symmetric about zero if the two algorithms are equal.
        statistic: Of the pooled differences.
    """
    pooled = np.concatenate(list(differences))
    if pooled.size <= MOST_EXACT:
        bits = np.arange(2**pooled.size)[:, None] >> np.arange(pooled.size)
        signs = 1.0 - 2.0 * (bits & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(FLIPS, pooled.size))
        signs[0] = 1.0
    observed = abs(float(statistic(pooled)))
    return float(np.mean(np.abs(statistic(signs * pooled)) >= observed - 1e-12))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for the number of tests (Holm), under the same names."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
