"""Two evaluations question by question: which is better, by how much, and where."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.evaluation.results_file import BenchmarkResults
from aepo_lightning.evaluation.statistics import PairedDifference, Scores, paired_difference
from aepo_lightning.evaluation.summary import Question, by_question, headline

Read = Callable[[TrajectoryResult], float]
"""The score of a trajectory with a verdict."""
PROTOCOL = ("benchmark", "protocol", "sampling", "tools", "checker", "metric")
"""Fields of a stamp in which runs that are compared should agree; what is left is what is compared. Questions need no
digest: only those that are the same in either run are paired."""
_OF_THE_MODEL = ("protocol.chat_format",)
"""Settings among them that come with a model: how it is spoken to, and its tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionChange:
    """A question that two runs answered differently well."""

    question_id: str
    question: str
    level: str
    before: float
    """Mean over its samples in the first run."""
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two runs on one benchmark say about each other. Differences are second less first."""

    benchmark: str
    metric: str
    num_questions: int
    """That both answered and have verdicts for."""
    num_left_out: int
    """Of either run: that the other one did not ask in the same words and with the same accepted answers, or that have
    no verdict."""
    before: float
    after: float
    paired: PairedDifference
    if_worst: float
    """The difference if what has no verdict were right in the first run and wrong in the second."""
    if_best: float
    num_samples: tuple[int, int]
    changes: tuple[QuestionChange, ...]
    """Those that got worse first, the largest changes at either end."""


def protocol_differences(before: BenchmarkResults, after: BenchmarkResults) -> list[str]:
    """Return in which settings beside the model two runs differ; their scores then measure different things."""
    found = before.stamp.differences(after.stamp, PROTOCOL)
    return [each for each in found if not each.startswith(_OF_THE_MODEL)]


def compare_results(before: BenchmarkResults, after: BenchmarkResults) -> Comparison:
    """Compare two runs on the questions that both answered.

    Args:
        before: The first run. Its metric is that of the comparison.
        after: The second.

    Raises:
        DataError: If they have no question in common with a verdict on both sides.
    """
    ours, theirs = _by_id(before), _by_id(after)
    common = [each for each in ours if each in theirs and _asked(ours[each]) == _asked(theirs[each])]
    read = headline(before.stamp.metric)
    first, second = ([_mean(side[each], read) for each in common] for side in (ours, theirs))
    judged = [i for i, pair in enumerate(zip(first, second, strict=True)) if None not in pair]
    if not judged:
        raise DataError(
            f"Two runs must have a question in common with verdicts in both, but {before.path} and {after.path} have "
            "none. Compare runs on the same benchmark."
        )
    values, others = (_array([side[i] for i in judged]) for side in (first, second))
    worst = _filled(theirs, common, read, 0.0) - _filled(ours, common, read, 1.0)
    best = _filled(theirs, common, read, 1.0) - _filled(ours, common, read, 0.0)
    return Comparison(
        benchmark=before.name,
        metric=before.stamp.metric,
        num_questions=len(judged),
        num_left_out=len({*ours, *theirs}) - len(judged),
        before=float(values.mean()),
        after=float(others.mean()),
        paired=paired_difference(others, values),
        if_worst=float(worst.mean()),
        if_best=float(best.mean()),
        num_samples=(before.stamp.num_samples, after.stamp.num_samples),
        changes=_changes([ours[common[i]] for i in judged], values, others),
    )


def _by_id(run: BenchmarkResults) -> dict[str, Question]:
    return {question[0].question_id: question for question in by_question(run.results)}


def _asked(question: Question) -> tuple[str, tuple[str, ...]]:
    return question[0].question, question[0].golds


def _mean(question: Question, read: Read) -> float | None:
    known = [read(each) for each in question if each.verdict.is_scored]
    return sum(known) / len(known) if known else None


def _filled(side: Mapping[str, Question], ids: Sequence[str], read: Read, filling: float) -> Scores:
    """Return the mean of each question with a stated score for what has no verdict."""
    return _array([np.mean([read(each) if each.verdict.is_scored else filling for each in side[name]]) for name in ids])


def _array(values: Sequence[object]) -> Scores:
    return np.array(values, dtype=np.float64)


def _changes(questions: Sequence[Question], before: Scores, after: Scores) -> tuple[QuestionChange, ...]:
    found = [
        QuestionChange(
            question_id=question[0].question_id,
            question=question[0].question,
            level=question[0].level,
            before=float(old),
            after=float(new),
        )
        for question, old, new in zip(questions, before, after, strict=True)
        if old != new
    ]
    return tuple(sorted(found, key=lambda each: (each.after - each.before, each.question_id)))
