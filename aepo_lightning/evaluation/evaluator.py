"""Asks one policy any benchmarks: each under its protocol, with a stamp of all that decides what comes of it."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.checker import AnswerChecker, choices_of
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolRunner, ToolSpec
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.evaluation.judging import CheckedAnswers, Unjudged
from aepo_lightning.evaluation.results import EvaluationStamp, TrajectoryResult
from aepo_lightning.evaluation.results_file import ResultsFile, read_results, read_stamp, results_path, results_paths
from aepo_lightning.evaluation.runner import EvaluationRun, Portion
from aepo_lightning.evaluation.stamps import model_settings, part_settings, question_digests, tool_settings, versions
from aepo_lightning.rewards.checkers import ExactMatch, SubstringAccuracy, TokenF1
from aepo_lightning.rewards.extraction import extract_answer
from aepo_lightning.rollout import RolloutJournal, RolloutParts, RolloutSampler, RolloutSettings, derive_seed
from aepo_lightning.rollout.description import digest_of
from aepo_lightning.rollout.progress import rollout_progress
from aepo_lightning.tools import ToolRuntime

logger = logging.getLogger(__name__)

JOURNAL = "rollouts"
"""The folder, within that of an evaluation, that holds what was generated and what tools answered."""
_FURTHER: Mapping[str, AnswerChecker] = {"em": ExactMatch(), "f1": TokenF1(), "acc": SubstringAccuracy()}
"""Rules whose scores stand beside every verdict."""


@runtime_checkable
class SelectableTools(ToolRunner, Protocol):
    """A runner of which a part can be had, such as `ToolRuntime`."""

    def only(self, names: Collection[str]) -> ToolRunner:
        """Return a runner of those tools alone that have one of these names."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationChoices:
    """What may be chosen beside a benchmark's protocol.

    Raises:
        ConfigError: If a number is not positive, or a word is unknown.
    """

    num_samples: int | None = None
    """Independent trajectories for each question. None is the protocol's."""
    num_questions: int | None = None
    """The first so many of each benchmark. None asks all."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SamplingSettings` that differ from the protocol's."""
    seed: int = 0
    max_concurrent_questions: int = 64
    """Questions that grow at once; the others wait for a free place."""
    share: tuple[int, int] = (0, 1)
    """Which of how many ranks asks: each has its share of the questions."""
    on_long_prompt: str = "error"
    """`error` or `count`: a prompt that leaves no room in the context refuses the evaluation, or counts as cut off."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("num_samples", "num_questions", "max_concurrent_questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {value}.")
        if self.on_long_prompt not in ("error", "count"):
            raise ConfigError(f"`on_long_prompt` must be 'error' or 'count', but got {self.on_long_prompt!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """One policy in an engine, and the tools that it may call."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    model: Mapping[str, Any]
    """What stamps say of the weights."""
    weights: WeightsStamp
    """Of what the engine has."""
    tools: ToolRunner = field(default_factory=lambda: ToolRuntime(tools=()))
    """A benchmark gets those that its protocol names, of a runner that lets itself be asked for them."""
    chat_format: Callable[[PreTrainedTokenizerBase, Sequence[ToolSpec]], ChatFormat] = TagFormat.for_tools
    checker: Callable[[Benchmark], AnswerChecker] = lambda benchmark: benchmark.checker
    """Who looks at the answers to a benchmark. Default: its rule."""
    choices: EvaluationChoices = field(default_factory=EvaluationChoices)
    before: Callable[[], object] = lambda: None
    """Called before the first generation of a benchmark that lacks results."""
    is_shown: bool = True
    """Whether to say how far an evaluation is."""

    def parts(self, benchmark: Benchmark) -> RolloutParts:
        """Return what trajectories of a benchmark are made of.

        Raises:
            ConfigError: If the choices do not fit the protocol.
        """
        protocol, names = benchmark.protocol, benchmark.protocol.tools
        tools = self.tools.only(names) if isinstance(self.tools, SelectableTools) else self.tools
        unknown = set(self.choices.sampling) - set(asdict(protocol.sampling))
        if unknown:
            raise ConfigError(f"`sampling` must have fields of the sampling settings, but got {sorted(unknown)}.")
        sampling = replace(protocol.sampling, **self.choices.sampling)
        num_samples = self.choices.num_samples or protocol.num_samples
        return RolloutParts(
            engine=self.engine,
            tools=tools,
            reward=Unjudged(),
            chat_format=self.chat_format(self.tokenizer, getattr(tools, "specs", ())),
            settings=RolloutSettings.of(sampling, budget=num_samples),
        ).for_evaluation(num_samples)

    def questions(self, benchmark: Benchmark, parts: RolloutParts) -> tuple[Question, ...]:
        """Read the questions that are asked, and look at their prompts.

        Raises:
            DataError: If they cannot be read, two have one id, the choices of one are no list of texts, or a prompt
                leaves no room and that is an error.
        """
        asked = benchmark.questions().questions[: self.choices.num_questions]
        rank, num_ranks = self.choices.share
        if not asked:
            raise DataError(f"The benchmark {benchmark.name} must have a question, but has none.")
        for each in asked:
            choices_of(each)
        _check_ids(benchmark, asked)
        limit = self.engine.max_model_len
        lengths = {each.question_id: len(parts.chat_format.encode_prompt(each.messages)) for each in asked}
        too_long = [name for name, length in lengths.items() if length >= limit]
        if too_long:
            problem = (
                f"A prompt of {benchmark.name} must leave room for a response within {limit} tokens, but "
                f"{len(too_long)} of {len(asked)} do not, such as {too_long[0]!r} with {lengths[too_long[0]]}. Raise "
                "`engine.max_model_len`"
            )
            if self.choices.on_long_prompt == "error":
                raise DataError(f"{problem}, or set `on_long_prompt=count`: they then count as cut off.")
            logger.warning("%s. They count as cut off.", problem)
        return asked[rank::num_ranks]

    def stamp(
        self, benchmark: Benchmark, parts: RolloutParts, questions: Sequence[Question], checker: AnswerChecker
    ) -> EvaluationStamp:
        """Return the settings that decide the results of a benchmark."""
        sampling = {name: value for name, value in asdict(parts.settings).items() if name != "budget"}
        protocol = benchmark.protocol
        return EvaluationStamp(
            benchmark=benchmark.name,
            benchmark_digest=digest_of(question_digests(questions, parts.chat_format)),
            protocol={
                "prompt": protocol.prompt,
                "extraction": protocol.extraction,
                "chat_format": digest_of(parts.chat_format),
                "stop": list(parts.chat_format.stop),
            },
            model=model_settings(self.model, self.engine),
            sampling={**sampling, "max_model_len": self.engine.max_model_len},
            tools=tool_settings(parts.tools),
            checker=part_settings(checker),
            seed=self.choices.seed,
            num_samples=parts.settings.budget,
            num_questions=len(questions),
            metric=benchmark.metric,
            is_other_version=benchmark.questions().is_other_version,
            versions=versions(self.engine),
        )

    def evaluate(self, benchmark: Benchmark, folder: Path | None = None) -> list[TrajectoryResult]:
        """Ask a benchmark's questions; return a result for each of their samples, in the order of both.

        Args:
            benchmark: Which.
            folder: Of the evaluation, where results and journal go; one that was cut off goes on there. None keeps
                them in memory.

        Raises:
            ConfigError: If the folder holds results of the benchmark under other settings, or of another model.
            DataError: If the questions cannot be read, or a prompt does not fit.
            EngineError: If the engine failed. What was finished is kept.
        """
        benchmark, checker = benchmark.loaded(), self.checker(benchmark)
        parts = self.parts(benchmark)
        self._warn_about_tools(benchmark, parts)
        questions = self.questions(benchmark, parts)
        if folder is None:
            return _in_order(self._run(benchmark, parts, questions, checker), questions)
        path = results_path(folder, benchmark.name)
        stamp = self.stamp(benchmark, parts, questions, checker)
        _check_model(folder, path, stamp)
        with ResultsFile(path, stamp) as results:
            found = list(read_results(path).results) if results.pairs else []
            if results.missing([each.question_id for each in questions]):
                journal = RolloutJournal(folder / JOURNAL)
                found += self._run(benchmark, parts, questions, checker, results, journal)
        return _in_order(found, questions)

    def _run(
        self,
        benchmark: Benchmark,
        parts: RolloutParts,
        questions: Sequence[Question],
        checker: AnswerChecker,
        results: ResultsFile | None = None,
        journal: RolloutJournal | None = None,
    ) -> list[TrajectoryResult]:
        self.before()
        run = EvaluationRun(
            sampler=RolloutSampler(parts, self.choices.max_concurrent_questions, journal),
            judge=CheckedAnswers(
                benchmark=benchmark.name,
                chat_format=parts.chat_format,
                read_answer=partial(extract_answer, mode=benchmark.protocol.extraction),
                checker=checker,
                further=_FURTHER,
            ),
            seed=derive_seed(self.choices.seed, "benchmark", benchmark.name),
            weights=self.weights,
            results=results,
            keeps_tokens=False,
        )
        with rollout_progress(benchmark.name, len(questions), self.is_shown) as count:
            _, added = run.run([Portion(name=benchmark.name, questions=questions)], count)
        return added

    def _warn_about_tools(self, benchmark: Benchmark, parts: RolloutParts) -> None:
        missing = [name for name in benchmark.protocol.tools if name not in parts.tools.tool_names]
        if missing:
            logger.warning(
                "The protocol of %s offers %s, but %s not there: its numbers are not comparable with published ones.",
                benchmark.name,
                " and ".join(benchmark.protocol.tools),
                " and ".join(missing) + (" is" if len(missing) == 1 else " are"),
            )


def _check_ids(benchmark: Benchmark, asked: Sequence[Question]) -> None:
    name, times = Counter(each.question_id for each in asked).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"The id of a question of {benchmark.name} must be its own, but {name!r:.80} stands for {times} of them. "
            "Give each an id of its own."
        )


def _check_model(folder: Path, own: Path, stamp: EvaluationStamp) -> None:
    """Refuse results of another model beside those of this one: there is one journal, and one model to replay it."""
    for path in results_paths(folder):
        there = None if path == own else read_stamp(path)
        if there is not None and (differences := there.differences(stamp, ["model"])):
            listing = "\n".join(f"  {each}" for each in differences)
            raise ConfigError(
                f"All results in {folder} must be of one model, but that of {path.name} differs:\n{listing}\nEvaluate "
                "into another folder."
            )


def _in_order(results: Sequence[TrajectoryResult], questions: Sequence[Question]) -> list[TrajectoryResult]:
    places = {question.question_id: place for place, question in enumerate(questions)}
    return sorted(results, key=lambda each: (places[each.question_id], each.sample))
