"""Fresh rollouts between epochs, as a LightningDataModule.

`train_dataloader` publishes the weights, rolls out the next questions and returns the optimiser steps of the iteration.
Which questions and which random numbers come next depends on the iteration counter alone, which is in the checkpoint.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from lightning import LightningDataModule
from tqdm.auto import tqdm

from aepo_lightning.experience import ExperienceBuilder
from aepo_lightning.module import AEPOModule, reduce_tally
from aepo_lightning.ops.collectives import all_reduce
from aepo_lightning.protocols import Task
from aepo_lightning.publication import PublicationCheck
from aepo_lightning.rollout import RolloutSampler, derive_seed, summarise_trees
from aepo_lightning.tree import RolloutTree, TreeBatch
from aepo_lightning.types import Minibatch, Question, WeightsStamp
from aepo_lightning.weights import WeightsArchive, publish


class RolloutDataModule(LightningDataModule):
    """Wraps an entropy-balanced rollout generator."""

    def __init__(  # noqa: PLR0913 -- every argument is one leaf of the configuration
        self,
        task: Task,
        sampler: RolloutSampler,
        evaluation_sampler: RolloutSampler,
        experience: ExperienceBuilder,
        *,
        questions_per_iteration: int = 32,
        num_val_questions: int | None = None,
        val_chunk_size: int = 64,
        publication_check: PublicationCheck | None = None,
        weights_archive: WeightsArchive | None = None,
        seed: int = 0,
        show_progress: bool = True,
    ) -> None:
        """Keep the parts.

        Args:
            task: Where questions come from.
            sampler: Grows the training trees.
            evaluation_sampler: Grows validation groups: independent samples, no branches.
            experience: Turns trees into optimiser steps.
            questions_per_iteration: Questions of one iteration, over all ranks.
            num_val_questions: How many validation questions to ask, over all ranks. None asks all.
            val_chunk_size: Validation questions that are rolled out together.
            publication_check: Compares engine and trainer after each publication. None does not look, and nothing that
                a crash cut off can be taken over, because nobody knows whether the weights are the same.
            weights_archive: Keeps the weights of each iteration for replays.
            seed: Every random number of every rollout derives from it.
            show_progress: Show a bar while trees grow.

        Raises:
            ValueError: If `questions_per_iteration` is not a multiple of the questions of an optimiser step.
        """
        super().__init__()
        if questions_per_iteration < 1 or questions_per_iteration % experience.questions_per_step:
            raise ValueError(
                f"`questions_per_iteration` must be a positive multiple of `questions_per_step` "
                f"({experience.questions_per_step}), but got {questions_per_iteration}."
            )
        self.task = task
        self.sampler = sampler
        self.evaluation_sampler = evaluation_sampler
        self.iteration = 0
        self.trees: list[RolloutTree] = []
        self.metrics: dict[str, float] = {}
        self._experience = experience
        self._questions_per_iteration = questions_per_iteration
        self._num_val_questions = num_val_questions
        self._val_chunk_size = val_chunk_size
        self._publication_check = publication_check
        self._weights_archive = weights_archive
        self._weights: WeightsStamp | None = None
        self._seed = seed
        self._show_progress = show_progress
        self._published = -1
        self._collected_at = -1
        self._minibatches: list[Minibatch] = []

    @property
    def _module(self) -> AEPOModule:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        if not isinstance(module, AEPOModule):
            raise TypeError(f"`RolloutDataModule` needs an `AEPOModule`, but got {type(module).__name__}.")
        return module

    def train_dataloader(self) -> Iterable[Minibatch]:
        """Roll out the next iteration; a second call at the same optimiser step returns the same data."""
        assert self.trainer is not None
        # Resuming at an epoch boundary asks for the loader twice, once with a stale epoch: only the step is reliable.
        if self._collected_at != self.trainer.global_step:
            self._collected_at = self.trainer.global_step
            self._collect()
            self.iteration += 1
        return _Minibatches(self._minibatches)

    def val_dataloader(self) -> Iterable[TreeBatch]:
        """Return a loader that rolls out validation questions chunk by chunk, as it is read."""
        return _EvaluatedTrees(self)

    def _collect(self) -> None:
        start = perf_counter()
        self.publish_weights()
        self._keep_weights()
        self.trees = self._rollout(
            self.sampler, self._train_questions(), derive_seed(self._seed, "train", self.iteration), self._train_name()
        )
        self.rest()
        rolled_out = perf_counter()
        module = self._module
        reference = module.score_reference if module.uses_reference else None
        with module.evaluating():
            self._minibatches = self._experience.build(self.trees, module.score, reference)
        self.metrics = self._describe(rolled_out - start, perf_counter() - rolled_out)

    def _train_name(self) -> str:
        assert self.trainer is not None
        return f"train-{self.iteration:05d}-rank{self.trainer.global_rank}"

    def _describe(self, rollout_s: float, experience_s: float) -> dict[str, float]:
        tally = summarise_trees(self.trees)
        values = {f"rollout/{name}": value for name, value in reduce_tally(tally).items()}
        generated = all_reduce([float(sum(tree.num_generated_tokens for tree in self.trees))])[0]
        values["time/rollout_s"] = rollout_s
        values["time/experience_s"] = experience_s
        values["rollout/tokens_per_s"] = generated / rollout_s
        if self._publication_check is not None:
            values |= {f"publication/{name}": value for name, value in self._publication_check.metrics.items()}
        return values

    def _train_questions(self) -> list[Question]:
        """Return this rank's share of the next questions, under ids that are unique in the run."""
        assert self.trainer is not None
        first = self.iteration * self._questions_per_iteration
        last = first + self._questions_per_iteration
        # Strided, so that every optimiser step has the same questions however many ranks share them.
        indices = range(first, last)[self.trainer.global_rank :: self.trainer.world_size]
        found = [(index, self.task.question("train", index)) for index in indices]
        return [replace(question, question_id=f"{index}:{question.question_id}") for index, question in found]

    def val_questions(self) -> list[Question]:
        """Return this rank's share of the validation questions.

        Raises:
            ValueError: If the task has no end and no number was asked for.
        """
        assert self.trainer is not None
        available = self.task.num_questions("val")
        number = self._num_val_questions if self._num_val_questions is not None else available
        if number is None:
            raise ValueError("`num_val_questions` must be given for a task without end, but got None.")
        number = number if available is None else min(number, available)
        indices = range(number)[self.trainer.global_rank :: self.trainer.world_size]
        return [self.task.question("val", index) for index in indices]

    def publish_weights(self) -> None:
        """Give the engine the present weights, unless it has them."""
        assert self.trainer is not None
        network = self._module.network
        assert network is not None, "`configure_model` runs before any loader is read"
        version = self.trainer.global_step
        if self._published != version:
            publish(network, self.sampler.parts.engine, version)
            self._weights = self._check_publication(version)
            self._published = version

    def _keep_weights(self) -> None:
        assert self.trainer is not None
        network = self._module.network
        assert network is not None, "`configure_model` runs before any loader is read"
        if self._weights_archive is not None:
            self._weights_archive.save(network, self.trainer.global_step, self.trainer.is_global_zero)

    def _check_publication(self, version: int) -> WeightsStamp:
        if self._publication_check is None:
            return WeightsStamp(version=version)
        module, parts = self._module, self.sampler.parts
        prompt_ids = parts.protocol.encode_prompt(self.task.question("train", 0).messages)
        with module.evaluating():
            return self._publication_check(parts.engine, module.score, prompt_ids, module.temperature, version)

    def rest(self) -> None:
        """Let the engine free what the update needs; the weights must be published again before the next rollout."""
        self.sampler.parts.engine.sleep()
        self._published = -1

    def evaluate(self, questions: Sequence[Question]) -> list[RolloutTree]:
        """Roll out independent samples of validation questions; the same seeds at every evaluation."""
        return self._rollout(self.evaluation_sampler, questions, derive_seed(self._seed, "val"), "val")

    def _rollout(
        self, sampler: RolloutSampler, questions: Sequence[Question], seed: int, name: str
    ) -> list[RolloutTree]:
        assert self.trainer is not None
        hidden = not self._show_progress or self.trainer.global_rank != 0
        with tqdm(total=len(questions), desc=f"rollout {name}", unit="q", leave=False, disable=hidden) as bar:

            def advance(_: RolloutTree) -> None:
                bar.update()

            return sampler.rollout(questions, seed, name, advance, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream of questions, as plain values."""
        return {"iteration": self.iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position."""
        self.iteration = int(state_dict["iteration"])
        self._forget()

    def teardown(self, stage: str) -> None:
        """Forget what belongs to this run's weights: another trainer may bring others."""
        del stage
        self._forget()

    def _forget(self) -> None:
        """Make the next loader publish the weights and collect, whatever the optimiser step."""
        self._published = self._collected_at = -1


class _Minibatches:
    """The optimiser steps of one iteration. Not a `DataLoader`, for which Lightning would ask for worker processes."""

    def __init__(self, minibatches: Sequence[Minibatch]) -> None:
        self._minibatches = minibatches

    def __len__(self) -> int:
        return len(self._minibatches)

    def __iter__(self) -> Iterator[Minibatch]:
        return iter(self._minibatches)


class _EvaluatedTrees:
    """Chunks of validation questions, rolled out when they are asked for."""

    def __init__(self, datamodule: RolloutDataModule) -> None:
        self._datamodule = datamodule
        self._questions = datamodule.val_questions()

    def __len__(self) -> int:
        return -(-len(self._questions) // self._datamodule._val_chunk_size)

    def __iter__(self) -> Iterator[TreeBatch]:
        self._datamodule.publish_weights()
        size = self._datamodule._val_chunk_size
        for start in range(0, len(self._questions), size):
            yield TreeBatch(trees=self._datamodule.evaluate(self._questions[start : start + size]))
        self._datamodule.rest()
