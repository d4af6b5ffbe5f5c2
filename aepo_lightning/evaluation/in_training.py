"""Benchmarks while a policy is trained: every few iterations, with the engine and the tools of the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.checker import AnswerChecker
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.benchmark import Benchmark
from aepo_lightning.evaluation.evaluator import EvaluationChoices, Evaluator
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.evaluation.summary import by_question, headline
from aepo_lightning.rollout import RolloutSampler, pass_at_k


@runtime_checkable
class AskableRollouts(Protocol):
    """A datamodule whose engine can be asked other questions between updates. `RolloutDataModule` is one."""

    engine: Engine

    @property
    def sampler(self) -> RolloutSampler:
        """What grows the training trees."""
        ...

    @property
    def published(self) -> WeightsStamp | None:
        """The weights that the engine has; None before the first publication."""
        ...

    def publish_weights(self) -> None:
        """Give the engine the present weights. Collective."""
        ...

    def rest(self) -> None:
        """Let the engine free what the update needs."""
        ...


class BenchmarkScores(L.Callback):
    """Asks benchmarks every few iterations and after the last, and logs `benchmark/<name>/...`.

    Each rank asks its share of the questions. Results are kept below `benchmarks/<iteration>` in the folder of the run,
    as those of `aepo-eval` are; what was cut off goes on there.
    """

    def __init__(
        self,
        benchmarks: Sequence[Benchmark],
        every_n_iterations: int = 10,
        *,
        choices: EvaluationChoices | None = None,
        chat_format: Callable[[PreTrainedTokenizerBase, Sequence[ToolSpec]], ChatFormat] = TagFormat.for_tools,
        checker: Callable[[Benchmark], AnswerChecker] | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            benchmarks: What is asked.
            every_n_iterations: How many iterations lie between two evaluations.
            choices: Samples, questions and seed, where they are not the protocols'.
            chat_format: How calls and results are written. Default: the paper's tags.
            checker: Who looks at the answers to a benchmark. Default: its rule.

        Raises:
            ConfigError: If the number is not positive, or two benchmarks have one name.
        """
        super().__init__()
        names = [each.name for each in benchmarks]
        if every_n_iterations < 1 or len(set(names)) < len(names):
            raise ConfigError(
                "`every_n_iterations` must be at least 1 and `benchmarks` have distinct names, but got "
                f"{every_n_iterations} and {names}."
            )
        self._benchmarks, self._every = list(benchmarks), every_n_iterations
        self._choices = choices or EvaluationChoices()
        self._chat_format = chat_format
        self._checker = checker or (lambda benchmark: benchmark.checker)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the questions and look at their prompts, before anything is trained.

        Raises:
            ConfigError: If the trainer's data cannot be asked.
            DataError: If a benchmark cannot be read, or a prompt leaves no room.
        """
        evaluator = self._evaluator(trainer, pl_module)
        self._benchmarks = [each.loaded() for each in self._benchmarks]
        for benchmark in self._benchmarks:
            evaluator.questions(benchmark, evaluator.parts(benchmark))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the benchmarks if it is time."""
        iteration = trainer.current_epoch + 1
        if not is_due(iteration, self._every, trainer.max_epochs):
            return
        rollouts = _rollouts_of(trainer)
        rollouts.publish_weights()
        evaluator = self._evaluator(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / "benchmarks" / f"{iteration:05d}"
        folder = folder / f"rank{trainer.global_rank}" if trainer.world_size > 1 else folder
        values: dict[str, float] = {}
        for benchmark in self._benchmarks:
            values |= scores(benchmark, evaluator.evaluate(benchmark, folder))
        rollouts.rest()
        has_logger = bool(trainer.loggers)
        pl_module.log_dict(values, logger=has_logger, sync_dist=True, rank_zero_only=True)

    def _evaluator(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Evaluator:
        rollouts = _rollouts_of(trainer)
        stamp = rollouts.published or WeightsStamp(version=0)
        source: Any = pl_module
        share = trainer.global_rank, trainer.world_size
        return Evaluator(
            engine=rollouts.engine,
            tokenizer=source.policy.tokenizer,
            model={"name": "in training", "digest": stamp.digest, "global_step": stamp.version},
            weights=stamp,
            tools=rollouts.sampler.parts.tools,
            chat_format=self._chat_format,
            checker=self._checker,
            choices=replace(self._choices, share=share),
            is_shown=trainer.is_global_zero,
        )


def is_due(iteration: int, every: int, last: int | None) -> bool:
    """Return whether benchmarks are asked after an iteration, counted from 1: every so often, and after the last."""
    return iteration % every == 0 or iteration == last


def scores(benchmark: Benchmark, results: Sequence[TrajectoryResult]) -> dict[str, float]:
    """Return what is logged of a benchmark: means over the questions of all ranks. Collective.

    Args:
        benchmark: Which.
        results: Of this rank's questions.
    """
    read = headline(benchmark.metric)
    scored = [[each for each in group if each.verdict.is_scored] for group in by_question(results)]
    scored = [group for group in scored if group]
    num_trajectories, num_questions = float(len(results)), float(len(scored))
    smallest = -all_reduce([-min((len(group) for group in scored), default=10**6)], "max")[0]
    totals: dict[str, tuple[float, float]] = {
        "score": (float(sum(_mean([read(each) for each in group]) for group in scored)), num_questions),
        "unscored_fraction": (num_trajectories - sum(map(len, scored)), num_trajectories),
        "num_tool_calls": (float(sum(each.num_tool_calls for each in results)), num_trajectories),
        "num_generated_tokens": (float(sum(each.num_generated_tokens for each in results)), num_trajectories),
    }
    for k in {1, int(smallest)} if smallest < 10**6 else ():
        correct = [(sum(each.verdict.is_correct for each in group), len(group)) for group in scored]
        totals[f"pass@{k}"] = (float(sum(pass_at_k(right, number, k) for right, number in correct)), num_questions)
    return _reduced(benchmark.name, totals)


def _reduced(name: str, totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    sums = all_reduce([value for pair in totals.values() for value in pair])
    pairs = zip(totals, sums[::2], sums[1::2], strict=True)
    return {f"benchmark/{name}/{key}": total / weight for key, total, weight in pairs if weight}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rollouts_of(trainer: L.Trainer) -> AskableRollouts:
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, AskableRollouts):
        raise ConfigError(
            f"The datamodule must be a `RolloutDataModule` for benchmarks in training, but got "
            f"{type(datamodule).__name__}. Evaluate a checkpoint with aepo-eval instead."
        )
    return datamodule
