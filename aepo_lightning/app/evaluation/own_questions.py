"""`aepo-eval RUN`: the held-out questions of a run with its own reward, as training asks them after its last iteration.

Questions, order, portions, seeds and samples are those of the run's validation, so on the machine that trained it the
numbers are the same to the last digit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from aepo_lightning.app.build import build, build_data, build_engine
from aepo_lightning.app.evaluation.run_policy import policy_of_run
from aepo_lightning.app.threads import set_threads
from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tree import TreeBatch
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.evaluated_policy import EvaluatedPolicy
from aepo_lightning.evaluation.judging import RewardedAnswers
from aepo_lightning.evaluation.results import EvaluationStamp
from aepo_lightning.evaluation.results_file import ResultsFile, results_path
from aepo_lightning.evaluation.runner import EvaluationRun, Portion
from aepo_lightning.evaluation.stamps import model_settings, question_digests, tool_settings, versions
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.rollout import RolloutJournal, RolloutParts, RolloutSampler
from aepo_lightning.rollout.description import digest_of
from aepo_lightning.rollout.progress import rollout_progress
from aepo_lightning.tasks.asked import ask_question
from aepo_lightning.training.datamodule import RolloutDataModule
from aepo_lightning.training.metrics import describe_evaluation
from aepo_lightning.training.question_stream import QuestionStream

HELD_OUT = "held_out"
"""What the results of a run's own questions stand under, beside benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The validation of a run, as its configuration has it."""

    questions: Sequence[Question]
    chunk_size: int
    num_samples: int
    pass_at: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, cfg: DictConfig, datamodule: RolloutDataModule) -> "HeldOut":
        """Read the settings of a run.

        Args:
            cfg: Of the run.
            datamodule: Built from it, with its sampler: it has looked through the questions.
        """
        data = cfg.data
        stream = QuestionStream(
            task=datamodule.task,
            questions_per_iteration=data.questions_per_iteration,
            num_val_questions=data.num_val_questions,
            seed=data.seed,
        )
        num_samples = data.num_val_samples
        pass_at = {1, num_samples} if data.pass_at is None else set(data.pass_at)
        return cls(
            questions=stream.val(),
            chunk_size=data.val_chunk_size,
            num_samples=num_samples,
            pass_at=tuple(sorted(pass_at)),
            seed=stream.val_order(()).seed,
        )

    def portions(self) -> list[Portion]:
        """Return what grows together, each under a name of its own in the journal."""
        starts = range(0, len(self.questions), self.chunk_size)
        return [
            Portion(name=f"{HELD_OUT}-{number:05d}", questions=self.questions[start : start + self.chunk_size])
            for number, start in enumerate(starts)
        ]


def evaluate_run(cfg: DictConfig, folder: Path, target: Path, checkpoint: Path | None = None) -> dict[str, float]:
    """Evaluate a run on its own held-out questions; return the figures under the names that training logs.

    Args:
        cfg: Of the run.
        folder: Of the run.
        target: Where results and journal go; an evaluation that was cut off goes on there.
        checkpoint: One of the run's. Default: the newest.

    Raises:
        ConfigError: If `target` holds an evaluation under other settings.
        DataError: If the run's policy or questions cannot be read.
    """
    set_threads(cfg.num_threads)
    policy = policy_of_run(cfg, folder, checkpoint)
    engine = build_engine(cfg, policy.source)
    try:
        datamodule = build_data(cfg, engine, build(cfg.algorithm), folder)
        parts = datamodule.prepare_sampler(policy.source.tokenizer).parts
        asked = HeldOut.of(cfg, datamodule)
        parts = parts.for_evaluation(asked.num_samples)
        stamp = own_stamp(parts, policy, asked)
        with ResultsFile(results_path(target, HELD_OUT), stamp) as results:
            _load(engine, policy, datamodule, build(cfg.publication_check))
            run = EvaluationRun(
                sampler=RolloutSampler(parts, cfg.data.max_concurrent_questions, RolloutJournal(target / "rollouts")),
                judge=RewardedAnswers(benchmark=HELD_OUT, chat_format=parts.chat_format),
                seed=asked.seed,
                weights=policy.stamp,
                results=results,
            )
            with rollout_progress(HELD_OUT, len(asked.questions)) as count:
                trees, _ = run.run(asked.portions(), count)
    finally:
        engine.close()
    return as_logged(describe_evaluation([TreeBatch(trees=trees, pass_at=asked.pass_at)]))


def as_logged(values: Mapping[str, float]) -> dict[str, float]:
    """Return values in the precision in which a trainer keeps what it logs."""
    return {name: torch.tensor(value, dtype=torch.float32).item() for name, value in values.items()}


def printed_by_training(folder: Path) -> dict[str, float]:
    """Return what the run printed of its last evaluation; empty if it did not come that far.

    Raises:
        DataError: If the file is there and cannot be read.
    """
    path = folder / "evaluation_after.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must hold figures by name, but: {error}. Move it away to do without them.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold figures by name, but has a {type(found).__name__}. Move it away.")
    return found


def own_stamp(parts: RolloutParts, policy: EvaluatedPolicy, asked: HeldOut) -> EvaluationStamp:
    """Return the settings that decide the results of a run's own questions."""
    sampling = {name: value for name, value in asdict(parts.settings).items() if name != "budget"}
    return EvaluationStamp(
        benchmark=HELD_OUT,
        benchmark_digest=digest_of(question_digests(asked.questions, parts.chat_format)),
        protocol={"questions_at_once": asked.chunk_size, "chat_format": digest_of(parts.chat_format)},
        model=model_settings(policy.identity, parts.engine),
        sampling={**sampling, "max_model_len": parts.engine.max_model_len},
        tools=tool_settings(parts.tools),
        checker={"reward": part_name(parts.reward), "digest": digest_of(parts.reward)},
        seed=asked.seed,
        num_samples=asked.num_samples,
        num_questions=len(asked.questions),
        versions=versions(parts.engine),
    )


def _load(
    engine: Engine, policy: EvaluatedPolicy, datamodule: RolloutDataModule, check: PublicationCheck | None
) -> None:
    """Give the engine the weights and, as training does, the probe of a publication: it fills the prefix cache."""
    engine.load_weights(policy.weights(), policy.global_step)
    if check is not None:
        parts = datamodule.sampler.parts
        prompt = parts.chat_format.encode_prompt(ask_question(datamodule.task, "train", 0).messages)
        check.sample(engine, prompt, parts.settings.temperature or 1.0)
