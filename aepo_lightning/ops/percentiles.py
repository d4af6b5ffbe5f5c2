"""Percentiles of numbers that lie on several ranks, from a few of each rank's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

MOST_KEPT = 1024
"""Numbers that a sample keeps. The rank of a percentile is then off by less than a thousandth of the numbers."""


@dataclass(frozen=True, slots=True)
class SortedSample:
    """Numbers in ascending order; of many, so many that are evenly spread among them."""

    kept: tuple[float, ...]
    count: int
    """How many numbers there were."""


def sorted_sample(values: Float[Tensor, " _"]) -> SortedSample:
    """Sort numbers and keep `MOST_KEPT` of them, or all if they are fewer.

    Args:
        values: In any order, none of them NaN.
    """
    ordered, count = values.detach().sort().values, values.numel()
    if count > MOST_KEPT:
        # The middle of each of as many equal parts.
        places = (torch.arange(MOST_KEPT, device=ordered.device, dtype=torch.float64) + 0.5) * (count / MOST_KEPT)
        ordered = ordered[places.long()]
    return SortedSample(kept=tuple(ordered.tolist()), count=count)


def percentiles(samples: Sequence[SortedSample], percents: Sequence[float | int]) -> list[float]:
    """Return percentiles of the numbers of all samples together.

    Between two numbers the percentile is interpolated, with the number at place i of n as percentile 100 (i - 0.5) / n
    (Hazen's rule); a number that stands for several counts as often.

    Args:
        samples: One or more, not all empty.
        percents: In [0, 100].
    """
    kept = np.array([value for sample in samples for value in sample.kept])
    weights = np.array([sample.count / len(sample.kept) for sample in samples for _ in sample.kept])
    order = np.argsort(kept, kind="stable")
    shares = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    return [float(value) for value in np.interp(np.asarray(percents) / 100, shares, kept[order])]
