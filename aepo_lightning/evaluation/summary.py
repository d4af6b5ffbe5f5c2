"""The numbers of an evaluation: scores with intervals and bounds, pass@k, votes, levels, calls, and shares.

A trajectory without a verdict is left out of a score, and two bounds say what it could be: with all of those counted as
wrong, and as right.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aepo_lightning.evaluation.results import EvaluationStamp, TrajectoryResult
from aepo_lightning.evaluation.shares import Calls, Shares, calls_of, shares_of
from aepo_lightning.evaluation.statistics import (
    Scores,
    interval_over_questions,
    majority_vote,
    pass_at_k_of_questions,
)
from aepo_lightning.rewards.f1 import normalize_answer, split_words

Question = Sequence[TrajectoryResult]
"""The trajectories of one question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A mean over questions, in [0, 1]."""

    value: float | None
    """Over what has a verdict; None if nothing has. A pass@k is the mean of the questions with k verdicts or more, and
    where these are not like the others it is kept within the bounds."""
    low: float | None
    """Lower end of its 95 % interval, by bootstrap over questions."""
    high: float | None
    if_wrong: float
    """The mean if all trajectories without a verdict were wrong."""
    if_right: float
    num_questions: int
    """That `value` is the mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSummary:
    """The scores of the questions of one level."""

    score: Score
    pass_at: Mapping[int, Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an evaluation on one benchmark says."""

    benchmark: str
    metric: str
    """`accuracy` or `f1`: what the headline is the mean of."""
    num_questions: int
    """That have trajectories."""
    num_asked: int | None
    """That were to be asked. None if the stamp does not say."""
    num_samples: int
    """Of each question, as the stamp says."""
    num_trajectories: int
    score: Score
    """The headline."""
    pass_at: Mapping[int, Score]
    """Unbiased pass@k of what is correct, for k from 1 to the number of samples."""
    majority: Score
    """Of the answer that most samples of a question give."""
    tied_fraction: float
    """Of the questions whose vote was tied, which counts as the mean of the answers that lead."""
    levels: Mapping[str, LevelSummary]
    """Empty where questions have no levels."""
    pass_by_calls: Mapping[int, Mapping[int, float]]
    """By number of calls c: pass@k where a trajectory counts only if it called tools at most c times."""
    further: Mapping[str, float]
    """Means of further scores, over the trajectories that have them."""
    shares: Shares
    calls: Calls

    @property
    def num_missing(self) -> int:
        """Trajectories that were to be made and are not there, as far as is known."""
        number = self.num_questions if self.num_asked is None else self.num_asked
        return max(number * self.num_samples - self.num_trajectories, 0)


def summarise(stamp: EvaluationStamp, results: Sequence[TrajectoryResult]) -> Summary:
    """Return the numbers of an evaluation on one benchmark.

    Args:
        stamp: Of the results.
        results: At least one, in any order.

    Raises:
        ValueError: If there are no results.
    """
    if not results:
        raise ValueError(f"`results` of {stamp.benchmark!r} must hold a trajectory, but got none. Evaluate first.")
    questions = by_question(results)
    score = score_of(questions, headline(stamp.metric))
    majority, tied_fraction = _majority(questions)
    return Summary(
        benchmark=stamp.benchmark,
        metric=stamp.metric,
        num_questions=len(questions),
        num_asked=stamp.num_questions,
        num_samples=stamp.num_samples,
        num_trajectories=len(results),
        score=score,
        pass_at=_pass_at(questions),
        majority=majority,
        tied_fraction=tied_fraction,
        levels=_levels(questions, stamp.metric),
        pass_by_calls=_pass_by_calls(questions),
        further=_further(results),
        shares=shares_of(results),
        calls=calls_of(results, score.value),
    )


def by_question(results: Sequence[TrajectoryResult]) -> list[Question]:
    """Return the trajectories of each question in the order of their samples, questions in the order of their ids."""
    found: dict[str, list[TrajectoryResult]] = defaultdict(list)
    for result in sorted(results, key=lambda each: each.pair):
        found[result.question_id].append(result)
    return list(found.values())


def headline(metric: str) -> Callable[[TrajectoryResult], float]:
    """Return what a metric reads of a trajectory that has a verdict."""
    if metric == "f1":
        return lambda result: result.verdict.score
    return lambda result: float(result.verdict.is_correct)


def score_of(questions: Sequence[Question], read: Callable[[TrajectoryResult], float]) -> Score:
    """Return the mean over questions of the means over their samples.

    Args:
        questions: At least one.
        read: From a trajectory with a verdict to a number in [0, 1].
    """
    known = [[read(each) for each in question if each.verdict.is_scored] for question in questions]
    sums, sizes = np.array([sum(each) for each in known]), np.array([len(each) for each in questions])
    missing = sizes - np.array([len(each) for each in known])
    means = np.array([sum(each) / len(each) for each in known if each])
    return _score(means, sums / sizes, (sums + missing) / sizes)


def _score(values: Scores, if_wrong: Scores, if_right: Scores) -> Score:
    bounds = float(if_wrong.mean()), float(if_right.mean())
    estimate = interval_over_questions(values) if values.size else None
    return Score(
        value=None if estimate is None else min(max(estimate.value, bounds[0]), bounds[1]),
        low=None if estimate is None else estimate.low,
        high=None if estimate is None else estimate.high,
        if_wrong=bounds[0],
        if_right=bounds[1],
        num_questions=values.size,
    )


def _pass_at(questions: Sequence[Question]) -> dict[int, Score]:
    correct = [sum(each.verdict.is_correct for each in question) for question in questions]
    scored = [sum(each.verdict.is_scored for each in question) for question in questions]
    drawn = [len(question) for question in questions]
    at_best = [right + total - known for right, total, known in zip(correct, drawn, scored, strict=True)]
    return {
        k: _score(
            pass_at_k_of_questions(correct, scored, k),
            pass_at_k_of_questions(correct, drawn, k),
            pass_at_k_of_questions(at_best, drawn, k),
        )
        for k in range(1, max(drawn) + 1)
    }


def _majority(questions: Sequence[Question]) -> tuple[Score, float]:
    filled: dict[float | None, list[float]] = {None: [], 0.0: [], 1.0: []}
    num_tied = 0
    for question in questions:
        answers = [ballot(each.answer) for each in question]
        for filling, found in filled.items():
            worth = [float(each.verdict.is_correct) if each.verdict.is_scored else filling for each in question]
            vote = majority_vote(answers, worth)
            found += [] if vote.score is None else [vote.score]
        num_tied += vote.is_tied
    values, if_wrong, if_right = (np.array(found) for found in filled.values())
    return _score(values, if_wrong, if_right), num_tied / len(questions)


def ballot(answer: str) -> str:
    """Return a form of an answer in which what a vote takes for equal is the same text; empty for no answer.

    Words are compared without case, punctuation and articles. Where digits or commands of LaTeX stand, punctuation has
    a meaning and stays: `1.5` is not `15`. Answers that are equal in other ways, such as `1/2` and `0.5`, are not
    found to be.
    """
    lowered = answer.lower()
    if "\\" in answer or any(letter.isdigit() for letter in answer):
        return " ".join(lowered.split())
    return normalize_answer(answer) or " ".join(split_words(lowered, keep_articles=True)) or lowered.strip()


def _levels(questions: Sequence[Question], metric: str) -> dict[str, LevelSummary]:
    found: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        found[question[0].level].append(question)
    if set(found) == {""}:
        return {}
    return {
        level: LevelSummary(score=score_of(found[level], headline(metric)), pass_at=_pass_at(found[level]))
        for level in sorted(found)
    }


def _pass_by_calls(questions: Sequence[Question]) -> dict[int, dict[int, float]]:
    scored = [sum(each.verdict.is_scored for each in question) for question in questions]
    ks = [k for k in range(1, max(scored) + 1) if k & (k - 1) == 0 or k == max(scored)]
    calls = {each.num_tool_calls for question in questions for each in question if each.verdict.is_correct}
    most = max(each.num_tool_calls for question in questions for each in question)
    return {limit: _pass_within(questions, scored, limit, ks) for limit in sorted(calls | {0, most})}


def _pass_within(
    questions: Sequence[Question], scored: Sequence[int], limit: int, ks: Sequence[int]
) -> dict[int, float]:
    """Return pass@k of what needed few calls, kept within its bounds as any other."""
    drawn = [len(question) for question in questions]
    few = [[each.verdict for each in question if each.num_tool_calls <= limit] for question in questions]
    correct = [sum(verdict.is_correct for verdict in verdicts) for verdicts in few]
    at_best = [sum(verdict.is_correct or not verdict.is_scored for verdict in verdicts) for verdicts in few]
    found: dict[int, float] = {}
    for k in ks:
        triples = ((correct, scored), (correct, drawn), (at_best, drawn))
        value, low, high = (float(pass_at_k_of_questions(*each, k).mean()) for each in triples)
        found[k] = min(max(value, low), high)
    return found


def _further(results: Sequence[TrajectoryResult]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, value in result.scores.items():
            found[name].append(value)
    return {name: float(np.mean(found[name])) for name in sorted(found)}
