"""Statistics of few runs: interquartile means, probability of improvement.

Scores come as strata: for each bed an array with one score for each seed, or with one difference for each seed that two
algorithms share. Bootstrap, sign-flip test and Holm's adjustment are those of `aepo_lightning.evaluation.statistics`.

References:
    Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv:2108.13264, sections 4.1 to 4.3; its
    probability of improvement compares all runs of a task, `paired_improvement` those of the same seed.
"""

import numpy as np

from aepo_lightning.evaluation.statistics import Scores, Strata


def interquartile_mean(scores: Scores) -> Scores:
    """Return the mean of what is left along the last axis without the lowest and the highest quarter, rounded down.

    Fewer than four scores are averaged as they are.
    """
    cut = scores.shape[-1] // 4
    kept = np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut]
    return np.asarray(kept.mean(axis=-1))


def probability_of_improvement(treated: Strata, control: Strata) -> float:
    """Return the mean over beds of P(X > Y) + P(X = Y) / 2 for a run X of `treated` and a run Y of `control`."""
    shares = [_share_above(x[:, None] - y[None, :]) for x, y in zip(treated, control, strict=True)]
    return float(np.mean(shares))


def paired_improvement(differences: Strata) -> float:
    """Return the mean over beds of the share of seeds whose difference is positive, ties counted as one half."""
    return float(np.mean([_share_above(each) for each in differences if each.size]))


def _share_above(differences: Scores) -> float:
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))
