"""Fresh rollouts between epochs, as a LightningDataModule.

`train_dataloader` publishes the weights, rolls out the next questions and returns the optimiser steps of the iteration.
Which questions and which random numbers come next depends on the iteration counter alone, which is in the checkpoint.
With `overlap`, the rollouts of the next iteration are started there too, and grow while the update runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from lightning import LightningDataModule, Trainer

from aepo_lightning.contracts.engine import Task
from aepo_lightning.contracts.question import Minibatch, Question, WeightsStamp
from aepo_lightning.contracts.tree import RolloutTree, TreeBatch
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.distributed.ranks import tick
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.publishing.publish import WeightsArchive, publish
from aepo_lightning.rollout import RolloutSampler, derive_seed, summarise_trees
from aepo_lightning.training.consistency import check_correction, check_overlap, staleness, warn_about_sampling
from aepo_lightning.training.experience import ExperienceBuilder
from aepo_lightning.training.loaders import EvaluationLoader, MinibatchLoader
from aepo_lightning.training.module import AEPOModule, reduce_tally
from aepo_lightning.training.overlap import OverlappedRollouts, RolloutOrder, is_last_iteration
from aepo_lightning.training.progress import rollout_progress


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
        overlap: bool = False,
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
            overlap: Grow the next iteration's rollouts, with the weights published last, while the update runs. Needs
                an engine that runs beside it and a correction for rollouts that are one iteration old.
            seed: Every random number of every rollout derives from it.
            show_progress: Say how many trees have grown: a bar on a terminal, else a line of the log every 30 s.

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
        self._overlap = OverlappedRollouts() if overlap else None
        self._seed = seed
        self._show_progress = show_progress
        self._published = -1
        self._collected_at = -1
        self._minibatches: list[Minibatch] = []

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "data are asked for by a trainer"
        return self.trainer

    @property
    def _module(self) -> AEPOModule:
        module = self._trainer.lightning_module
        if not isinstance(module, AEPOModule):
            raise TypeError(f"`RolloutDataModule` needs an `AEPOModule`, but got {type(module).__name__}.")
        return module

    @property
    def _network(self) -> PolicyNetwork:
        network = self._module.network
        assert network is not None, "`configure_model` runs before any loader is read"
        return network

    def setup(self, stage: str) -> None:
        """Check that engine, batches and loss fit together, and say so if log-probs and sampling do not.

        Raises:
            ConfigError: If they do not.
        """
        if stage != "fit":
            return
        correction = self._module.importance_correction
        check_correction(self._experience.old_logprobs, correction)
        if self._overlap is not None:
            check_overlap(self.sampler.parts.engine, correction)
        if self._trainer.is_global_zero:
            warn_about_sampling(self.sampler.parts.settings)

    def train_dataloader(self) -> Iterable[Minibatch]:
        """Roll out the next iteration; a second call at the same optimiser step returns the same data."""
        # Resuming at an epoch boundary asks for the loader twice, once with a stale epoch: only the step is reliable.
        if self._collected_at != self._trainer.global_step:
            self._collected_at = self._trainer.global_step
            self._collect()
            self.iteration += 1
        return MinibatchLoader(self._minibatches)

    def val_dataloader(self) -> Iterable[TreeBatch]:
        """Return a loader that rolls out validation questions chunk by chunk, as it is read."""
        return EvaluationLoader(
            questions=self.val_questions(),
            chunk_size=self._val_chunk_size,
            evaluate=self.evaluate,
            before=self.publish_weights,
            after=self.rest,
        )

    def _collect(self) -> None:
        start = perf_counter()
        self._take_trees()
        rolled_out = perf_counter()
        age, oldest = staleness(self.trees, self._trainer.global_step)
        module = self._module
        reference = module.score_reference if module.uses_reference else None
        with module.evaluating():
            self._minibatches = self._experience.build(self.trees, module.score, reference, is_stale=oldest > 0)
        figures = self._experience.describe(self._minibatches)
        self.metrics = self._describe(rolled_out - start, perf_counter() - rolled_out)
        self.metrics |= {f"experience/{name}": value for name, value in figures.items()} | {
            "rollout/staleness_steps": age
        }

    def _take_trees(self) -> None:
        """Get the trees of this iteration and, with overlap, start those of the next one."""
        num_steps = self._questions_per_iteration // self._experience.questions_per_step
        order = self._order(self.iteration)
        ready = None
        if self._overlap is not None:
            ready = self._overlap.take(self.sampler, order)
            self.rest()  # prefixes that validation has cached would change the last bits
        self.publish_weights()
        if self._weights_archive is not None:
            self._weights_archive.save(self._network, self._trainer.global_step, self._trainer.is_global_zero)
        if ready is None:
            ready = self._rollout(self.sampler, order)
            self.rest()
        self.trees = ready
        if self._overlap is not None and not is_last_iteration(self._trainer, num_steps):
            self.publish_weights()
            assert self._weights is not None, "published above"
            self._overlap.start(self.sampler, self._order(self.iteration + 1), self._weights)

    def _order(self, iteration: int) -> RolloutOrder:
        return RolloutOrder(
            questions=self._train_questions(iteration),
            seed=derive_seed(self._seed, "train", iteration),
            name=f"train-{iteration:05d}-rank{self._trainer.global_rank}",
        )

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

    def _train_questions(self, iteration: int) -> list[Question]:
        """Return this rank's share of the questions of an iteration, under ids that are unique in the run."""
        first = iteration * self._questions_per_iteration
        # Strided, so that every optimiser step has the same questions however many ranks share them.
        indices = range(first, first + self._questions_per_iteration)[
            self._trainer.global_rank :: self._trainer.world_size
        ]
        found = [(index, self.task.question("train", index)) for index in indices]
        return [replace(question, question_id=f"{index}:{question.question_id}") for index, question in found]

    def val_questions(self) -> list[Question]:
        """Return this rank's share of the validation questions.

        Raises:
            ValueError: If the task has no end and no number was asked for.
        """
        available = self.task.num_questions("val")
        number = self._num_val_questions if self._num_val_questions is not None else available
        if number is None:
            raise ValueError("`num_val_questions` must be given for a task without end, but got None.")
        number = number if available is None else min(number, available)
        indices = range(number)[self._trainer.global_rank :: self._trainer.world_size]
        return [self.task.question("val", index) for index in indices]

    def publish_weights(self) -> None:
        """Give the engine the present weights, unless it has them."""
        network, version = self._network, self._trainer.global_step
        if self._published != version:
            if self._overlap is not None:
                self._overlap.wait()
            publish(network, self.sampler.parts.engine, version)
            self._weights = self._check_publication(version)
            self._published = version

    def _check_publication(self, version: int) -> WeightsStamp:
        if self._publication_check is None:
            return WeightsStamp(version=version)
        module, parts = self._module, self.sampler.parts
        prompt_ids = parts.protocol.encode_prompt(self.task.question("train", 0).messages)
        with module.evaluating():
            return self._publication_check(parts.engine, module.score, prompt_ids, module.temperature, version)

    def rest(self) -> None:
        """Let the engine free what the update needs; the weights must be published again before the next rollout.

        With overlap nothing is freed, but what is generated next still starts from an empty prefix cache.
        """
        if self._overlap is None:
            self.sampler.parts.engine.sleep()
        self._published = -1

    def evaluate(self, questions: Sequence[Question]) -> list[RolloutTree]:
        """Roll out independent samples of validation questions; the same seeds at every evaluation."""
        order = RolloutOrder(questions=questions, seed=derive_seed(self._seed, "val"), name="val")
        return self._rollout(self.evaluation_sampler, order)

    def _rollout(self, sampler: RolloutSampler, order: RolloutOrder) -> list[RolloutTree]:
        is_shown = self._show_progress and self._trainer.global_rank == 0
        with rollout_progress(order.name, len(order.questions), is_shown) as count:

            def advance(_: RolloutTree) -> None:
                count()
                tick()

            return sampler.rollout(order.questions, order.seed, order.name, advance, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream of questions, as plain values.

        A rollout in flight is waited for: the weights that it needs will be gone.
        """
        return {"iteration": self.iteration} | ({} if self._overlap is None else self._overlap.state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position."""
        self.iteration = int(state_dict["iteration"])
        self._forget()
        if self._overlap is not None:
            self._overlap.restore(state_dict)

    def teardown(self, stage: str) -> None:
        """Forget what belongs to this run's weights: another trainer may bring others."""
        del stage
        self._forget()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the rollout in flight; `teardown` is not called then."""
        del exception
        if self._overlap is not None:
            self._overlap.cancel()

    def _forget(self) -> None:
        """Make the next loader publish the weights and collect, whatever the optimiser step; stop what is in flight."""
        if self._overlap is not None:
            self._overlap.cancel()
        self._published = self._collected_at = -1
