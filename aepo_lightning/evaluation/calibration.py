"""How far a judge agrees with people, and what that says of a score that it gave.

A judge is run on answers whose correctness is known. Pairs of one question are not independent, so questions are what
intervals are taken over. Where the judge abstained there is no pair to compare; those are counted apart.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aepo_lightning.evaluation.statistics import RESAMPLES, Estimate, unseen_share

Counts: TypeAlias = NDArray[np.float64]
"""Pairs by true positives, false positives, false negatives, true negatives, along the last axis."""
Statistic: TypeAlias = Callable[[Counts], Counts]

_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedLabel:
    """An answer that was labelled, and what the judge said of it."""

    question_id: str
    is_correct: bool
    """The label."""
    judged: bool | None
    """Whether the judge called it correct. None if it abstained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """How often which verdict met which label."""

    true_positives: int
    """Correct, and judged correct."""
    false_positives: int
    """Incorrect, but judged correct."""
    false_negatives: int
    """Correct, but judged incorrect."""
    true_negatives: int
    """Incorrect, and judged incorrect."""
    abstained_correct: int
    """Correct, and the judge abstained."""
    abstained_incorrect: int

    @property
    def num_judged(self) -> int:
        """Pairs with a verdict."""
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives

    @property
    def num_abstained(self) -> int:
        """Pairs without a verdict."""
        return self.abstained_correct + self.abstained_incorrect


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a judge made of labelled answers.

    Raises:
        ValueError: If there are no pairs.
    """

    judge: Mapping[str, Any]
    """Who judged: model, template and its digest, rule."""
    pairs: tuple[JudgedLabel, ...]
    abstentions: Mapping[str, int] = field(default_factory=dict)
    """Number of pairs without a verdict, by kind."""

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        if not self.pairs:
            raise ValueError("`pairs` must not be empty, but got none. Label some answers.")

    @property
    def confusion(self) -> Confusion:
        """The table of verdicts and labels."""
        return confusion(self.pairs)

    @property
    def agreement(self) -> Estimate | None:
        """Share of equal verdicts; see `agreement`. None if the judge abstained everywhere."""
        return agreement(self.pairs)

    @property
    def kappa(self) -> Estimate | None:
        """Agreement beyond chance; see `cohen_kappa`."""
        return cohen_kappa(self.pairs)

    def corrected(self, verdicts: Sequence[tuple[str, bool]]) -> Estimate | None:
        """Return the accuracy behind verdicts of the same judge; see `prediction_powered`."""
        return prediction_powered(verdicts, self.pairs)


def confusion(pairs: Sequence[JudgedLabel]) -> Confusion:
    """Count pairs by verdict and label."""

    def num(is_correct: bool, judged: bool | None) -> int:
        return sum(pair.is_correct is is_correct and pair.judged is judged for pair in pairs)

    return Confusion(
        true_positives=num(True, True),
        false_positives=num(False, True),
        false_negatives=num(True, False),
        true_negatives=num(False, False),
        abstained_correct=num(True, None),
        abstained_incorrect=num(False, None),
    )


def agreement(pairs: Sequence[JudgedLabel], level: float = _LEVEL, resamples: int = RESAMPLES) -> Estimate | None:
    """Return the share of pairs in which verdict and label are equal, with its interval.

    Args:
        pairs: Those without a verdict are left out.
        level: Of the interval, a percentile bootstrap over questions. Where all resamples are equal, as if the judge
            never erred, it reaches to where it would with a share of other questions (`unseen_share`).
        resamples: Of the bootstrap.

    Returns:
        None if there is no verdict.
    """
    return _over_questions(pairs, _agreement_of, level, resamples)


def cohen_kappa(pairs: Sequence[JudgedLabel], level: float = _LEVEL, resamples: int = RESAMPLES) -> Estimate | None:
    """Return Cohen's kappa between verdicts and labels, with its interval.

    kappa = (p_o - p_e) / (1 - p_e): p_o is the share of equal pairs, p_e what it would be if verdicts and labels were
    independent and as often correct as they are.

    Args:
        pairs: Those without a verdict are left out.
        level: As for `agreement`. Resamples in which kappa is not defined are left out.
        resamples: Of the bootstrap.

    Returns:
        None if there is no verdict, or kappa is not defined: labels and verdicts all say the same.

    References:
        Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    return _over_questions(pairs, _kappa_of, level, resamples)


def prediction_powered(
    verdicts: Sequence[tuple[str, bool]], pairs: Sequence[JudgedLabel], level: float = _LEVEL
) -> Estimate | None:
    """Return the accuracy that people would have found, from many verdicts and a few labels.

    The mean of the verdicts, minus the mean of verdict minus label where both are known; both samples are taken to come
    from the same kind of answers. The variances of the two means add up.

    Args:
        verdicts: Question and whether the judge called the answer correct, for each answer of an evaluation.
        pairs: Labelled answers that are not among these. Those without a verdict are left out.
        level: Of the interval, which is normal, with variances between questions.

    Returns:
        Estimate and interval, cut to [0, 1]. Where verdict and label never differ, or always in the same way, the
        interval is wider by `unseen_share` on either side. None if one of the two has fewer than two questions.

    References:
        Prediction-powered inference, arXiv:2301.09633, section 2 and algorithm 1. Departures: questions are clusters,
        variances have Q - 1 below, and the interval is cut and widened as said.
    """
    known = [pair for pair in pairs if pair.judged is not None]
    judged = _mean_with_error([(name, float(verdict)) for name, verdict in verdicts])
    excess = _mean_with_error([(pair.question_id, float(bool(pair.judged)) - pair.is_correct) for pair in known])
    if judged is None or excess is None:
        return None
    value = judged[0] - excess[0]
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.hypot(judged[1], excess[1])
    if excess[1] == 0:
        reach += unseen_share(len({pair.question_id for pair in known}), level)
    low, value, high = (min(max(number, 0.0), 1.0) for number in (value - reach, value, value + reach))
    return Estimate(value, low, high)


def _mean_with_error(values: Sequence[tuple[str, float]]) -> tuple[float, float] | None:
    """Return the mean of all values and its standard error with questions as clusters; None below two questions."""
    names = sorted({name for name, _ in values})
    if len(names) < 2:
        return None
    mean = math.fsum(value for _, value in values) / len(values)
    off = dict.fromkeys(names, 0.0)
    for name, value in values:
        off[name] += value - mean
    spread = math.fsum(total**2 for total in off.values()) * len(names) / (len(names) - 1)
    return mean, math.sqrt(spread) / len(values)


def _over_questions(
    pairs: Sequence[JudgedLabel], statistic: Statistic, level: float, resamples: int
) -> Estimate | None:
    tables = _tables(pairs)
    total = tables.sum(axis=0)
    if not len(tables) or math.isnan(value := float(statistic(total))):
        return None
    random = np.random.default_rng(0)
    weights = random.multinomial(len(tables), [1 / len(tables)] * len(tables), size=resamples)
    drawn = statistic(weights @ tables)
    low, high = np.quantile(drawn[~np.isnan(drawn)], [(1 - level) / 2, (1 + level) / 2])
    if low == high:
        share = unseen_share(len(tables), level)
        low, high = (
            statistic((1 - share) * total + share * _judged_again(total, wrongly)) for wrongly in (True, False)
        )
    return Estimate(value, float(low), float(high))


def _tables(pairs: Sequence[JudgedLabel]) -> Counts:
    """Return one row of counts for each question."""
    rows: dict[str, list[int]] = {}
    for pair in pairs:
        if pair.judged is not None:
            rows.setdefault(pair.question_id, [0, 0, 0, 0])[_CELLS[pair.judged, pair.is_correct]] += 1
    return np.array([*rows.values()], dtype=np.float64).reshape(-1, 4)


_CELLS = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
"""Verdict and label to their place among counts."""


def _agreement_of(counts: Counts) -> Counts:
    return np.asarray((counts[..., 0] + counts[..., 3]) / counts.sum(axis=-1))


def _kappa_of(counts: Counts) -> Counts:
    """Return kappa, and NaN where it is not defined."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    judged, labelled = shares[..., 0] + shares[..., 1], shares[..., 0] + shares[..., 2]
    by_chance = judged * labelled + (1 - judged) * (1 - labelled)
    is_defined = by_chance < 1 - 1e-12
    beyond = shares[..., 0] + shares[..., 3] - by_chance
    return np.where(is_defined, beyond / np.where(is_defined, 1 - by_chance, 1.0), np.nan)


def _judged_again(counts: Counts, wrongly: bool) -> Counts:
    """Return the counts of the same labels with all verdicts wrong, or all right."""
    num_correct, num_incorrect = counts[0] + counts[2], counts[1] + counts[3]
    if wrongly:
        return np.array([0.0, num_incorrect, num_correct, 0.0])
    return np.array([num_correct, 0.0, 0.0, num_incorrect])
