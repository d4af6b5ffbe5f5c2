"""Fresh rollouts between epochs, as a LightningDataModule.

`train_dataloader` publishes the weights, rolls out the next questions and returns the optimiser steps of the iteration.
Which questions come next depends on how many were asked, and random numbers on the iterations; the checkpoint has both.
With `overlap`, the rollouts of the next iteration are started there too, and grow while the update runs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

from lightning import LightningDataModule, Trainer
from transformers import PreTrainedTokenizerBase

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.branching import BranchPolicy
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.question import Question, Task
from aepo_lightning.contracts.reward import Reward
from aepo_lightning.contracts.tool import Tool, ToolRunner
from aepo_lightning.contracts.tree import RolloutTree, TreeBatch
from aepo_lightning.distributed.ranks import report_cut_off
from aepo_lightning.errors import DataError
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rewards.function import RewardFunction
from aepo_lightning.rollout import RolloutJournal, RolloutSampler, SamplingSettings, summarise_trees
from aepo_lightning.rollout.scoring import ScoringSettings
from aepo_lightning.tasks import as_task
from aepo_lightning.tasks.asked import ask_question
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.consistency import check_agreement, needs_whole_rollouts, warn_about_sampling
from aepo_lightning.training.dynamic_sampling import SamplingRounds
from aepo_lightning.training.engine_weights import EngineWeights, Probe
from aepo_lightning.training.experience import ExperienceSettings
from aepo_lightning.training.first_iterations import FirstIterations, refuse_unscored, warn_if_unscored
from aepo_lightning.training.lightning_settings import expect_iteration, hear_signals, prepare_trainer
from aepo_lightning.training.loaders import EvaluationLoader, MinibatchLoader
from aepo_lightning.training.metrics import describe_iteration, describe_overlong, prefixed
from aepo_lightning.training.overlap import OverlappedRollouts, is_last_iteration, staleness
from aepo_lightning.training.question_checks import OnLongPrompt, check_golds, look_through, no_response_problem
from aepo_lightning.training.question_stream import QuestionStream, RolloutOrder
from aepo_lightning.training.rollout_parts import ChatFormatFactory, build_parts, experience_builder
from aepo_lightning.training.round_trip import make_round_trip
from aepo_lightning.training.trained_policy import TrainedPolicy, as_trained_policy
from aepo_lightning.training.tree_source import Moment, Orders, TreeSource


class RolloutDataModule(LightningDataModule):
    """Wraps an entropy-balanced rollout generator. It tells the trainer itself what rollouts between epochs need."""

    def __init__(  # noqa: PLR0913 -- every argument is one leaf of the configuration
        self,
        task: Task | Iterable[Mapping[str, Any]],
        engine: Engine,
        algorithm: Algorithm,
        *,
        tools: ToolRunner | Sequence[Tool | Callable[..., Any]] = (),
        reward: Reward | RewardFunction | None = None,
        chat_format: ChatFormat | ChatFormatFactory | None = None,
        sampling: SamplingSettings | None = None,
        experience: ExperienceSettings | None = None,
        scoring: ScoringSettings | None = None,
        max_prompt_tokens: int | None = None,
        on_long_prompt: OnLongPrompt = "drop",
        questions_per_iteration: int = 32,
        max_concurrent_questions: int = 64,
        num_val_questions: int | None = None,
        num_val_samples: int = 4,
        pass_at: Sequence[int] | None = None,
        val_chunk_size: int = 64,
        publication_check: PublicationCheck | Literal["default"] | None = "default",
        journal: RolloutJournal | None = None,
        weights_archive: WeightsArchive | None = None,
        overlap: bool = False,
        seed: int = 0,
        show_progress: bool = True,
        round_trip: bool = True,
    ) -> None:
        """Keep the parts. The sampler is built in `setup`, when the module brings the tokenizer.

        Args:
            task: Where questions come from, or rows of a list (`ListedQuestions`).
            engine: What generates. It has the policy that is trained.
            algorithm: The same as the module's.
            tools: What the policy may call: tools, plain functions, or a runner of them.
            reward: A reward, or a function of the finished trajectory that returns a number. Default: the paper's.
            chat_format: How calls and results are written, or what builds that from tokenizer and tools. Default: the
                paper's tags.
            sampling: Temperature and limits of trajectories.
            experience: How trees become optimiser steps.
            scoring: How long a reward may take, and what its failure means.
            max_prompt_tokens: Questions with longer prompts are not asked. None takes any.
            on_long_prompt: Whether those are left out and counted (`drop`), or refused with their place (`error`).
            questions_per_iteration: Questions of one iteration, over all ranks.
            max_concurrent_questions: Questions that grow at once; the others wait for a free place.
            num_val_questions: How many validation questions to ask, over all ranks. None asks all.
            num_val_samples: Independent trajectories per validation question.
            pass_at: The k of each `val/pass@k`. Default: 1 and `num_val_samples`.
            val_chunk_size: Validation questions that are rolled out together.
            publication_check: Compares engine and trainer after each publication. None does not look, and nothing that
                a crash cut off can be taken over, because nobody knows whether the weights are the same.
            journal: Where finished trees are written at once. None keeps them in memory only.
            weights_archive: Keeps the weights of each iteration for replays.
            overlap: Grow the next iteration's rollouts, with the weights published last, while the update runs. Needs
                an engine that runs beside it and a correction for rollouts that are one iteration old.
            seed: Every random number of every rollout derives from it.
            show_progress: Say how many trees have grown: a bar on a terminal, else a line of the log every 30 s.
            round_trip: Try template, chat format, tools and reward on a perfect answer before anything is sampled.

        Raises:
            ConfigError: If a number does not fit the others, or a part is not what its argument asks for.
        """
        super().__init__()
        experience = experience or ExperienceSettings()
        self._num_steps = experience.num_steps(questions_per_iteration)
        reward = PaperReward() if reward is None else reward
        self.task = as_task(task)
        check_golds(self.task, reward)
        self.engine = engine
        self.algorithm = algorithm
        self.iteration = self.num_asked = 0
        self.trees: list[RolloutTree] = []
        self.metrics: dict[str, float] = {}
        self._build_parts = build_parts(
            engine=engine,
            algorithm=algorithm,
            tools=tools,
            reward=reward,
            chat_format=chat_format,
            sampling=sampling or SamplingSettings(),
            scoring=scoring or ScoringSettings(),
        )
        self._prompt_limit, self._val_chunk_size = (max_prompt_tokens, on_long_prompt), val_chunk_size
        self._experience_settings = experience
        self._questions = QuestionStream(
            task=self.task,
            questions_per_iteration=questions_per_iteration,
            num_val_questions=num_val_questions,
            seed=seed,
        )
        self._rounds, self._first_iterations = SamplingRounds(rule=algorithm.dynamic_sampling), FirstIterations()
        self._max_concurrent_questions, self._num_val_samples = max_concurrent_questions, num_val_samples
        self._pass_at = tuple(sorted({1, num_val_samples} if pass_at is None else set(pass_at)))
        self._publication_check = PublicationCheck() if publication_check == "default" else publication_check
        self._source = TreeSource(
            engine=engine,
            weights=EngineWeights(engine=engine, check=self._publication_check, archive=weights_archive),
            overlap=OverlappedRollouts() if overlap else None,
        )
        self._journal, self._show_progress, self._round_trip = journal, show_progress, round_trip
        self._collected_at = -1
        self._minibatches: list[Minibatch] = []
        self._sampler: RolloutSampler | None = None

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "data are asked for by a trainer"
        return self.trainer

    @property
    def _module(self) -> TrainedPolicy:
        return as_trained_policy(self._trainer.lightning_module)

    @property
    def sampler(self) -> RolloutSampler:
        """What grows the training trees; there from `setup` or `prepare_sampler` on."""
        assert self._sampler is not None, "`setup` or `prepare_sampler` runs first"
        return self._sampler

    @property
    def branch_policy(self) -> BranchPolicy:
        """The branch policy of the next rollouts: the algorithm's, unless it was replaced, which takes a sampler."""
        return self.algorithm.branch_policy if self._sampler is None else self._sampler.parts.branch_policy

    @branch_policy.setter
    def branch_policy(self, branch_policy: BranchPolicy) -> None:
        self.sampler.parts = replace(self.sampler.parts, branch_policy=branch_policy)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self.sampler.parts.chat_format.decode(token_ids)

    def prepare_sampler(self, tokenizer: PreTrainedTokenizerBase) -> RolloutSampler:
        """Build the sampler, and what turns its trees into steps, once; return the sampler.

        Args:
            tokenizer: That of the policy.
        """
        if self._sampler is None:
            parts = self._build_parts(tokenizer)
            look_through(self.task, parts.chat_format, *self._prompt_limit)
            self._sampler = RolloutSampler(parts, self._max_concurrent_questions, self._journal)
            self._evaluation_sampler = self._sampler.for_evaluation(self._num_val_samples)
            numbers = tokenizer.pad_token_id, parts.settings.max_response_tokens
            self._experience = experience_builder(self.algorithm, self._experience_settings, *numbers)
        return self._sampler

    def setup(self, stage: str) -> None:
        """Build the sampler, tell the trainer what it must know, and check that module and data fit together.

        Raises:
            ConfigError: If they do not.
        """
        self.prepare_sampler(self._module.policy.tokenizer)
        prepare_trainer(self._trainer, self._num_steps, has_validation=self._stream.num_val > 0)
        self._source.is_shown = self._show_progress and self._trainer.is_global_zero
        if self._round_trip:
            make_round_trip(self.sampler.parts, self._module.policy, self.task)
            self._round_trip = False
        if stage != "fit":
            return
        check_agreement(self, self._module, self.sampler.parts.settings)
        self.sampler.whole_only = needs_whole_rollouts(self.engine, self._module.importance_correction)
        if self._trainer.is_global_zero:
            warn_about_sampling(self.sampler.parts.settings)

    @property
    def old_logprobs(self) -> str:
        """Where the old log-probs of an update come from."""
        return self._experience_settings.old_logprobs

    @property
    def is_overlapped(self) -> bool:
        """Whether rollouts grow while the update runs."""
        return self._source.overlap is not None

    def make_resumable(self) -> bool:
        """Stop rollouts in flight; return whether a state between iterations has what a continued run needs."""
        return self._source.make_resumable(self._order(self.iteration).name)

    def wait_for_rollouts(self) -> None:
        """Wait for rollouts in flight: `state_dict` does too, but maybe where no signal is heard. Collective."""
        self._source.wait()

    def weights_were_replaced(self) -> None:
        """Publish the weights before the next rollouts, and drop what grows with those that were replaced."""
        self._source.forget()

    def train_dataloader(self) -> Iterable[Minibatch]:
        """Roll out the next iteration; a second call at the same optimiser step returns the same data."""
        # Resuming at an epoch boundary asks for the loader twice, once with a stale epoch: only the step is reliable.
        if self._collected_at != self._trainer.global_step:
            self._collected_at = self._trainer.global_step
            self._collect_next()
        return MinibatchLoader(self._minibatches)

    def val_dataloader(self) -> Iterable[TreeBatch]:
        """Return a loader that rolls out validation questions chunk by chunk, as it is read."""
        return EvaluationLoader(
            questions=self.val_questions(),
            chunk_size=self._val_chunk_size,
            evaluate=self.evaluate,
            before=self.publish_weights,
            after=self.rest,
            pass_at=self._pass_at,
        )

    def _collect_next(self) -> None:
        """Roll out until there is something to train on: an iteration has nothing if no prompt leaves room."""
        num_skipped, self._minibatches = 0, []
        for _ in range(self._stream.num_iterations_per_pass):
            self._collect()
            self.iteration, self.num_asked = self.iteration + 1, self._position(self.iteration + 1)
            num_skipped += self._num_steps - len(self._minibatches)
            self.metrics["experience/skipped_steps"] = float(num_skipped)
            if self._minibatches:
                found = (self.trees, self.metrics, self._minibatches, self.sampler.parts.tools)
                self._first_iterations.look(self.iteration - 1, *found)
                expect_iteration(self._trainer, len(self._minibatches))
                return
            warn_if_unscored(self.iteration - 1, self.trees, self.metrics)
        settings = self._experience_settings
        num_asked = num_skipped * settings.questions_per_step // settings.num_epochs
        refuse_unscored(num_asked, self.trees, self.metrics)
        raise DataError(no_response_problem(num_asked, self.engine.max_model_len, self.algorithm.overlong))

    def _collect(self) -> None:
        start = perf_counter()
        self._take_trees()
        rolled_out = perf_counter()
        trained = self._rounds.chosen(self.trees)
        module, (age, oldest) = self._module, staleness(trained, self._trainer.global_step)
        reference = module.score_reference if module.uses_reference else None
        with module.evaluating():
            self._minibatches = self._experience.build(trained, module.score, reference, is_stale=oldest > 0)
        parts = self.sampler.parts
        tally = summarise_trees(self.trees, parts.settings.turn_entropy)
        seconds = {"rollout_s": rolled_out - start, "experience_s": perf_counter() - rolled_out}
        self.metrics = describe_iteration(tally, self.trees, seconds, parts) | {"rollout/staleness_steps": age}
        self.metrics |= self._rounds.metrics(self.trees) | describe_overlong(self.trees, self._experience.overlong)
        self.metrics |= prefixed("experience", self._experience.describe(self._minibatches))
        if self._publication_check is not None:
            self.metrics |= prefixed("publication", self._publication_check.metrics)

    def _take_trees(self) -> None:
        hear_signals(self._trainer)
        first = self._order(self.iteration)
        self._rounds.begin(len(first.questions))
        orders = Orders(first=first, further=self._further_order, next=self._next_order)
        self.trees = self._source.take(self._moment, self.sampler, orders, self.publish_weights)

    def _further_order(self, trees: Sequence[RolloutTree]) -> RolloutOrder | None:
        hear_signals(self._trainer)
        ranks = self._trainer.global_rank, self._trainer.world_size
        return self._rounds.order(trees, self._stream, self.iteration, self._position(self.iteration + 1), *ranks)

    @property
    def _moment(self) -> Moment:
        parts = self.sampler.parts
        prompt_ids = parts.chat_format.encode_prompt(ask_question(self.task, "train", 0).messages)
        return Moment(
            module=self._module,
            step=self._trainer.global_step,
            is_writer=self._trainer.is_global_zero,
            probe=Probe(prompt_ids=prompt_ids, temperature=parts.settings.temperature or 1.0),
        )

    def _next_order(self) -> RolloutOrder | None:
        is_last = is_last_iteration(self._trainer, self._num_steps)
        return None if is_last else self._order(self.iteration + 1)

    def _order(self, iteration: int) -> RolloutOrder:
        ranks = self._trainer.global_rank, self._trainer.world_size
        return self._stream.order(iteration, self._position(iteration), *ranks)

    def _position(self, iteration: int) -> int:
        """Return how many questions were asked before an iteration: this one or a later one."""
        further = self._rounds.num_asked if iteration > self.iteration else 0
        return self.num_asked + further + (iteration - self.iteration) * self._stream.questions_per_iteration

    @property
    def _stream(self) -> QuestionStream:
        return replace(self._questions, task=self.task)

    def val_questions(self) -> list[Question]:
        """Return this rank's share of the validation questions.

        Raises:
            ConfigError: If the task has no end and no number was asked for.
        """
        return self._stream.val(self._trainer.global_rank, self._trainer.world_size)

    def publish_weights(self) -> None:
        """Give the engine the present weights, unless it has them."""
        hear_signals(self._trainer)
        self._source.publish(self._moment)

    @property
    def published(self) -> WeightsStamp | None:
        """The weights that the engine has; None before the first publication."""
        return self._source.weights.stamp

    def rest(self) -> None:
        """Let the engine free what the update needs; the weights must be published again before the next rollout."""
        self._source.rest()

    def evaluate(self, questions: Sequence[Question]) -> list[RolloutTree]:
        """Roll out independent samples of validation questions; the same seeds at every evaluation."""
        return self._source.rollout(self._evaluation_sampler, self._stream.val_order(questions))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream of questions, as plain values.

        A rollout in flight is waited for: the weights that it needs may be gone.
        """
        is_new = self._collected_at < 0
        num_left = 0 if is_new else len(self._minibatches) - self._trainer.global_step + self._collected_at
        position = {"iteration": self.iteration} | self._stream.state(self.num_asked, num_left)
        return position | ({} if self._source.overlap is None else self._source.overlap.state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position, with whatever number of questions per iteration this run has."""
        self.iteration, self.num_asked = int(state_dict["iteration"]), self._stream.position(state_dict)
        self._forget()
        if self._source.overlap is not None:
            self._source.overlap.restore(state_dict)

    def teardown(self, stage: str) -> None:
        """Forget what belongs to this run's weights: another trainer may bring others."""
        del stage
        self._forget()

    def on_exception(self, exception: BaseException) -> None:
        """Tell the other ranks, unless that was done before callbacks had all save; stop the rollout in flight.

        `teardown` is not called then.
        """
        report_cut_off(exception)
        if self._source.overlap is not None:
            self._source.overlap.cancel()

    def _forget(self) -> None:
        """Make the next loader publish the weights and collect, whatever the optimiser step; stop what is in flight."""
        self._source.forget()
        self._collected_at = -1
