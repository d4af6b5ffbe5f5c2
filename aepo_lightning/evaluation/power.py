"""How many questions show a difference, and what difference the questions at hand could show.

Two runs answer the same Q questions, with n samples of each. The observed difference of a question is its true one plus
noise of the samples, so the mean over questions has the variance V / Q with

    V = between + within_1 / n_1 + within_2 / n_2

where `between` is the variance over questions of the true difference and `within` the mean variance of a single sample
of a question. A two-sided test at level a finds a difference d with probability p where d is at least
(z(1 - a/2) + z(p)) * sqrt(V / Q), z being quantiles of the normal distribution; solved for Q, that is how many
questions are needed. A pilot run gives the variances. The formula is that of arXiv:2411.00640, section 5, derived here
anew. It takes the mean of the differences to be normal, which it is from some dozens of questions on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import NormalDist

import numpy as np

from aepo_lightning.evaluation.statistics import Scores

FEWEST_FOR_VARIANCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Why differences of single questions differ."""

    between: float
    """Variance over questions of the true difference. Where `within` is not known, of the observed one."""
    within: tuple[float, float] | None
    """Mean variance of a sample of a question, on either side. None if the pilot took one sample of each question."""

    def variance(self, num_samples: int) -> float:
        """Return V: the variance of the difference of a question.

        Args:
            num_samples: Of each question, on either side.

        Raises:
            ValueError: If the pilot cannot tell what so many samples bring.
        """
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, but got {num_samples}.")
        if self.within is None:
            if num_samples == 1:
                return self.between
            raise ValueError(
                f"`num_samples` must be 1 with a pilot of one sample a question, but got {num_samples}. Take a pilot "
                "with two or more to know what more samples bring."
            )
        return self.between + sum(self.within) / num_samples


def spread_of_pair(values: Sequence[Scores], others: Sequence[Scores]) -> Spread:
    """Return the spread of the differences of two pilot runs.

    Args:
        values: For each question the scores of its samples in one run.
        others: The same of the other run, of the same questions in the same order.

    Raises:
        ValueError: If there are fewer than two questions.
    """
    _check_number(len(values))
    pairs = zip(values, others, strict=True)
    observed = float(np.var([one.mean() - other.mean() for one, other in pairs], ddof=1))
    own, theirs = _within(values), _within(others)
    if own is None or theirs is None:
        return Spread(between=observed, within=None)
    noise = own * _mean_inverse(values) + theirs * _mean_inverse(others)
    return Spread(between=max(observed - noise, 0.0), within=(own, theirs))


def spread_of_one(values: Sequence[Scores], correlation: float) -> Spread:
    """Return the spread of the differences between a pilot run and another one as good and as varied.

    Args:
        values: For each question the scores of its samples.
        correlation: In [-1, 1], of the two runs' true scores over questions: 1 if they find the same questions hard, 0
            if they have nothing in common. The variance over questions of the true difference is then
            2 * (1 - correlation) times that of the true score. It is not used with one sample of each question, where
            true scores cannot be told from noise and nothing is assumed in common.

    Raises:
        ValueError: If there are fewer than two questions, or the correlation is none.
    """
    _check_number(len(values))
    if not -1 <= correlation <= 1:
        raise ValueError(f"`correlation` must be in [-1, 1], but got {correlation}.")
    observed, own = float(np.var([each.mean() for each in values], ddof=1)), _within(values)
    if own is None:
        return Spread(between=2 * observed, within=None)
    true = max(observed - own * _mean_inverse(values), 0.0)
    return Spread(between=2 * (1 - correlation) * true, within=(own, own))


def questions_needed(
    spread: Spread, difference: float, num_samples: int = 1, power: float = 0.8, level: float = 0.05
) -> int:
    """Return how many questions show a difference.

    Args:
        spread: Of the differences of single questions.
        difference: To be found, such as 0.02 for two points.
        num_samples: Of each question, on either side.
        power: With which probability it is to be found, in (0, 1).
        level: Of the two-sided test, in (0, 1).

    Raises:
        ValueError: If the pilot cannot tell, or a number has no meaning.
    """
    if not 0 < difference < inf:
        raise ValueError(f"`difference` must be positive and finite, but got {difference}.")
    needed = (_quantiles(power, level) / difference) ** 2 * spread.variance(num_samples)
    return max(FEWEST_FOR_VARIANCE, ceil(round(needed, 9)))


def detectable_difference(
    spread: Spread, num_questions: int, num_samples: int = 1, power: float = 0.8, level: float = 0.05
) -> float:
    """Return the smallest difference that so many questions show, with `questions_needed`'s other arguments.

    Raises:
        ValueError: If the pilot cannot tell, or a number has no meaning.
    """
    if num_questions < 1:
        raise ValueError(f"`num_questions` must be at least 1, but got {num_questions}.")
    return _quantiles(power, level) * sqrt(spread.variance(num_samples) / num_questions)


def _quantiles(power: float, level: float) -> float:
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must be in (0, 1), but got {value}.")
    return max(NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power), 0.0)


def _check_number(num_questions: int) -> None:
    if num_questions < FEWEST_FOR_VARIANCE:
        raise ValueError(f"A pilot must have at least two questions with verdicts, but got {num_questions}.")


def _within(values: Sequence[Scores]) -> float | None:
    """Return the mean over questions of the variance of a sample, or None if no question has two samples."""
    found = [each.var(ddof=1) for each in values if each.size >= FEWEST_FOR_VARIANCE]
    return float(np.mean(found)) if found else None


def _mean_inverse(values: Sequence[Scores]) -> float:
    return float(np.mean([1 / each.size for each in values]))
