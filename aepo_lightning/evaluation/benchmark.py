"""A benchmark as data: where its questions come from, how they are asked, who looks at the answers, what was published.

`conf/benchmark/` has one file for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args, runtime_checkable

from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.contracts.question import Question
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.protocol import EvaluationProtocol

Metric = Literal["accuracy", "f1"]
"""What the headline averages: whether a verdict is correct, or its score."""
_NUM_COLUMNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScore:
    """A number that somebody printed for this benchmark."""

    method: str
    """Such as `AEPO` or `GRPO`."""
    model: str
    """The policy's backbone."""
    value: float
    """In percent."""
    source: str
    """Paper and table."""
    metric: str = "pass@1"
    """`pass@1` or `pass@5`, of whatever the paper counts as correct, or `f1`."""
    level: str = ""
    """One of the benchmark's levels. Empty for all questions."""
    note: str = ""
    """Why the number may not be comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Where numbers were printed."""

    source: str
    """Paper and table."""
    note: str = ""
    """Why they may not be comparable."""


def published_scores(
    rows: Sequence[Sequence[object]], sources: Mapping[str, Publication]
) -> tuple[PublishedScore, ...]:
    """Return published numbers from the rows of a table.

    Args:
        rows: Method, model, metric, level (empty for all questions), value in percent, and a name among `sources`.
        sources: Where numbers were printed, by name.

    Raises:
        ConfigError: If a row has another shape, or names an unknown source.
    """
    scores = []
    for row in rows:
        if len(row) != _NUM_COLUMNS or not isinstance(row[4], int | float) or row[5] not in sources:
            raise ConfigError(
                f"`published` must have rows [method, model, metric, level, value, source] with a source among "
                f"{list(sources)}, but got {list(row)}."
            )
        method, model, metric, level = map(str, row[:4])
        printed = sources[str(row[5])]
        scores.append(
            PublishedScore(
                method=method,
                model=model,
                value=float(row[4]),
                metric=metric,
                level=level,
                source=printed.source,
                note=printed.note,
            )
        )
    return tuple(scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkQuestions:
    """The questions of a benchmark as they were read."""

    questions: tuple[Question, ...]
    """`metadata` has `benchmark`, `level` (maybe empty), and `choices` where there are any. Nothing in them depends on
    where the file lies."""
    origin: str
    """The file, or the dataset with its revision."""
    sha256: str = ""
    """Of the file. Empty for rows of the Hub."""
    is_known: bool = False
    """Whether this is the version that published numbers were measured on."""
    is_other_version: bool = False
    """Whether another version is known than this one, which was accepted all the same."""


@runtime_checkable
class BenchmarkSource(Protocol):
    """Where a benchmark's questions are read."""

    def read(self, name: str) -> BenchmarkQuestions:
        """Return the questions of the benchmark of this name.

        Raises:
            DataError: If there is no file, it is another version, or a row cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class QuestionsInMemory:
    """A source that was read."""

    found: BenchmarkQuestions

    def read(self, name: str) -> BenchmarkQuestions:
        """Return what was found."""
        del name
        return self.found


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One of the field's question sets with everything that a number of it depends on.

    Raises:
        ConfigError: If the metric is unknown, or a published number is of a level that the benchmark does not have.
    """

    name: str
    """Lower-case letters, digits and underscores: the name of its file in `conf/benchmark/`."""
    title: str
    source: BenchmarkSource
    checker: AnswerChecker
    """The rule. It decides where no judge is configured, and before the judge where one is."""
    protocol: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    metric: Metric = "accuracy"
    judge: str = ""
    """Name of the judge that the published numbers were given by. Empty where the rule decides alone."""
    levels: Sequence[str] = ()
    """The questions' levels or categories, in the order of tables."""
    published: Sequence[PublishedScore] = ()

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.metric not in get_args(Metric):
            raise ConfigError(f"`metric` must be one of {', '.join(get_args(Metric))}, but got {self.metric!r}.")
        for score in self.published:
            if score.level and score.level not in self.levels:
                raise ConfigError(
                    f"`published` of {self.name} must name levels among {list(self.levels)}, but got {score.level!r}."
                )

    def questions(self) -> BenchmarkQuestions:
        """Read the questions.

        Raises:
            DataError: If there is no file, it is another version, or a row cannot be used.
        """
        return self.source.read(self.name)

    def loaded(self) -> "Benchmark":
        """Return the same benchmark with its questions in memory, so that its source is read once.

        Raises:
            DataError: If they cannot be read; see `questions`.
        """
        return replace(self, source=QuestionsInMemory(self.questions()))
