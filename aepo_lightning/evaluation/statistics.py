"""What may be concluded from scores: means with intervals, paired comparisons, pass@k, majority votes.

Numbers in, numbers out. The unit is the question: samples of one question are not independent of each other, so they
are averaged first and questions are what is drawn anew. Everything random has a fixed seed, so that a table can be made
again.

References:
    Adding Error Bars to Evals, arXiv:2411.00640, on questions as clusters and paired differences. Evaluating Large
    Language Models Trained on Code, arXiv:2107.03374, eq. 1, on pass@k. Holm, A simple sequentially rejective multiple
    test procedure, 1979.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aepo_lightning.rollout.statistics import pass_at_k

Scores = NDArray[np.float64]
Strata = Sequence[Scores]
"""Scores in groups that are drawn apart from each other."""
Statistic = Callable[[Scores], Scores]
"""A number of the pooled scores, along the last axis."""

RESAMPLES = 5_000
"""Of a bootstrap: the ends of a 95 % interval then move by less than a twentieth of its width."""
FLIPS = 20_000
"""Of a sign-flip test with too many pairs to try all signs."""
MOST_EXACT = 14
"""Pairs up to which all signs are tried."""
_BLOCK = 1 << 21
"""Scores that are held at once."""
_PRODUCTIVITY_SIGMA = 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with an interval."""

    value: float
    low: float
    high: float


def mean(scores: Scores) -> Scores:
    """Return the mean along the last axis."""
    return np.asarray(scores.mean(axis=-1))


def bootstrap(strata: Strata, statistic: Statistic = mean, level: float = 0.95, resamples: int = RESAMPLES) -> Estimate:
    """Return a statistic of all scores and its percentile interval, scores drawn anew within each group.

    Args:
        strata: Of each group, at least one score in all.
        statistic: Of the pooled scores. The interval is that of the same number.
        level: Share of resamples within the interval.
        resamples: How many.

    Raises:
        ValueError: If there is no score.
    """
    present = [scores for scores in strata if scores.size]
    if not present:
        raise ValueError("`strata` must hold a score, but got none. Compare what has scores.")
    random = np.random.default_rng(0)
    drawn = [_draw_indices(random, scores.size, resamples) for scores in present]
    found = [
        statistic(np.concatenate([scores[rows[block]] for scores, rows in zip(present, drawn, strict=True)], axis=1))
        for block in _blocks(resamples, sum(scores.size for scores in present))
    ]
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(np.concatenate(present))), float(low), float(high))


def _draw_indices(random: np.random.Generator, size: int, resamples: int) -> NDArray[np.uint32]:
    drawn = np.empty((resamples, size), dtype=np.uint32)
    for block in _blocks(resamples, size):
        drawn[block] = random.integers(size, size=drawn[block].shape)
    return drawn


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // num_columns)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def interval_over_questions(
    values: Scores, bounds: tuple[float, float] = (0.0, 1.0), level: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Return the mean over questions with its interval, questions drawn anew.

    Where all questions have the same value, a resample can show nothing else, and the interval would have no width
    however few there are. It is then what is true of a share that was not seen: with Q questions, those that would have
    another value are fewer than e = 1 - ((1 - level) / 2)^(1/Q), and the worst that they can have are the bounds.

    Args:
        values: One for each question, such as the mean over its samples.
        bounds: The least and the largest that a value can be.
        level: Of the interval.
        resamples: Of the bootstrap.

    Raises:
        ValueError: If there are no values.
    """
    found = bootstrap([values], mean, level, resamples)
    if np.ptp(values) > 0:
        return found
    unseen = unseen_share(values.size, level)
    low, high = (found.value + unseen * (bound - found.value) for bound in bounds)
    return Estimate(found.value, low, high)


def unseen_share(num_questions: int, level: float = 0.95) -> float:
    """Return how large a share of questions may be of a kind of which none was seen: 1 - ((1 - level) / 2)^(1 / Q)."""
    return float(1.0 - ((1.0 - level) / 2.0) ** (1.0 / num_questions))


def sign_flip_p(differences: Strata, statistic: Statistic = mean) -> float:
    """Return the two-sided p-value of a paired sign-flip test: how often random signs give so large a statistic.

    All signs are tried for up to `MOST_EXACT` pairs, else `FLIPS` random ones, the observed ones among them.

    Args:
        differences: Of each group. They are symmetric about zero if the two sides are equal.
        statistic: Of the pooled differences.
    """
    pooled = np.concatenate(list(differences))
    observed = abs(float(statistic(pooled))) - 1e-12
    if pooled.size <= MOST_EXACT:
        bits = np.arange(2**pooled.size)[:, None] >> np.arange(pooled.size)
        return float(np.mean(np.abs(statistic((1.0 - 2.0 * (bits & 1)) * pooled)) >= observed))
    random, num_larger = np.random.default_rng(0), 0
    for block in _blocks(FLIPS, pooled.size):
        signs = random.choice([-1.0, 1.0], size=(block.stop - block.start, pooled.size))
        if not block.start:
            signs[0] = 1.0
        num_larger += int(np.count_nonzero(np.abs(statistic(signs * pooled)) >= observed))
    return num_larger / FLIPS


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """How far one side is above the other on the same questions."""

    difference: Estimate
    """Mean over questions, with its interval by bootstrap over questions."""
    p: float
    """Of a two-sided test that flips the signs of the questions' differences."""


def paired_difference(
    values: Scores, others: Scores, bounds: tuple[float, float] = (0.0, 1.0), level: float = 0.95
) -> PairedDifference:
    """Compare two sides question by question.

    The p-value is exact where both sides are equal and took as many samples of each question; with unequal numbers the
    differences need not be symmetric, and it is near.

    Args:
        values: Of one side, one for each question.
        others: Of the other side, of the same questions in the same order.
        bounds: The least and the largest that a value can be.
        level: Of the interval.

    Raises:
        ValueError: If the sides differ in length, or have no questions.
    """
    if values.shape != others.shape:
        raise ValueError(
            f"`others` must have a value for each of {values.size} questions, but got {others.size}. Pair them first."
        )
    differences, widest = values - others, bounds[1] - bounds[0]
    return PairedDifference(
        difference=interval_over_questions(differences, (-widest, widest), level), p=sign_flip_p([differences])
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for the number of tests (Holm), under the same names."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def pass_at_k_of_questions(num_correct: Sequence[int], num_samples: Sequence[int], k: int) -> Scores:
    """Return the unbiased pass@k of each question that has at least k samples, in order."""
    pairs = zip(num_correct, num_samples, strict=True)
    return np.array([pass_at_k(correct, drawn, k) for correct, drawn in pairs if drawn >= k], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class MajorityVote:
    """What the samples of a question answer together."""

    score: float | None
    """Of the answer that most samples gave; the mean where several answers were given as often. None where such an
    answer has no score."""
    is_tied: bool


def majority_vote(answers: Sequence[str], scores: Sequence[float | None]) -> MajorityVote:
    """Let the samples of a question vote.

    Args:
        answers: In a form in which equal answers are equal texts. An empty one does not vote.
        scores: Of each sample; None where it has none. Samples of the same answer that were scored differently are
            averaged.

    Returns:
        The vote. Without any answer the score is 0, and nothing is tied.

    Raises:
        ValueError: If there are not as many scores as answers.
    """
    if len(answers) != len(scores):
        raise ValueError(f"`scores` must be as many as the {len(answers)} answers, but got {len(scores)}.")
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return MajorityVote(score=0.0, is_tied=False)
    most = max(counts.values())
    leaders = [answer for answer, count in counts.items() if count == most]
    worth: list[float] = []
    for leader in leaders:
        known = [score for answer, score in zip(answers, scores, strict=True) if answer == leader and score is not None]
        if not known:
            return MajorityVote(score=None, is_tied=len(leaders) > 1)
        worth.append(sum(known) / len(known))
    return MajorityVote(score=sum(worth) / len(worth), is_tied=len(leaders) > 1)


def tool_productivity(accuracy: float, num_calls: float) -> float:
    """Return accuracy * c / (c + 0.1) * 100, the paper's repository's measure of what tool calls bring.

    Args:
        accuracy: In [0, 1].
        num_calls: c, tool calls per trajectory in the mean.

    Returns:
        In percent; 0 where no tool is called.
    """
    return 100.0 * accuracy * num_calls / (num_calls + _PRODUCTIVITY_SIGMA)
