"""Rolls out many questions at once: every chain is a task of its own, and no question waits for another.

The engine batches whatever is ready. What bounds the work in flight is the number of questions that grow at once, and
the engine's own limits beneath.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import BranchingToolRunner
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import AepoError, ConfigError
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout.description import question_digest
from aepo_lightning.rollout.group import GroupRollout
from aepo_lightning.rollout.journal import JournalSession, RolloutJournal
from aepo_lightning.rollout.rounds import check_entropy_source
from aepo_lightning.rollout.steps import RolloutParts, signature


class RolloutSampler:
    """Turns questions into finished rollout trees."""

    def __init__(
        self, parts: RolloutParts, max_concurrent_questions: int = 64, journal: RolloutJournal | None = None
    ) -> None:
        """Keep the parts.

        Args:
            parts: Engine, tools, reward, chat format, budget, branch policy and settings.
            max_concurrent_questions: Questions that grow at once; the others wait for a free place.
            journal: Where finished trees are written at once. None keeps them in memory only.

        Raises:
            ConfigError: If `max_concurrent_questions` is not positive.
        """
        if max_concurrent_questions < 1:
            raise ConfigError(f"`max_concurrent_questions` must be at least 1, but got {max_concurrent_questions}.")
        self.parts = parts
        self.journal = journal
        self.whole_only = False
        """Whether a rollout that was cut off is taken over only if all of its trees are there. What is grown beside
        fewer others differs from what was grown beside all in the last bits that the engine reports."""
        self._max_concurrent_questions = max_concurrent_questions

    def for_evaluation(self, num_samples: int) -> "RolloutSampler":
        """Return a sampler of independent trajectories, on the same engine, tools and reward, without a journal."""
        return RolloutSampler(self.parts.for_evaluation(num_samples), self._max_concurrent_questions)

    def rollout(
        self,
        questions: Sequence[Question],
        seed: int,
        name: str = "rollout",
        on_tree: Callable[[RolloutTree], object] | None = None,
        weights: WeightsStamp | None = None,
    ) -> list[RolloutTree]:
        """Grow one tree per question and return them in the order of the questions.

        Args:
            questions: What to ask. The same question may stand in the list once only.
            seed: Every random number derives from it and from where it is used.
            name: Under which the journal keeps the trees.
            on_tree: Called with each tree as soon as it is finished, for progress.
            weights: What the engine generates with. If the journal has trees and steps of a rollout that was cut off,
                under the same name, seed, settings and weights, of the same questions in the same words, they are
                taken over instead of made again.

        Raises:
            ValueError: If two questions have the same id.
            EngineError: If the engine failed; trees that were finished are in the journal. If it reports estimates of
                entropies, and `branch_signal=prefix` needs them exact.
        """
        return run_in_event_loop(self.rollout_async(questions, seed, name, on_tree, weights))

    async def rollout_async(
        self,
        questions: Sequence[Question],
        seed: int,
        name: str = "rollout",
        on_tree: Callable[[RolloutTree], object] | None = None,
        weights: WeightsStamp | None = None,
    ) -> list[RolloutTree]:
        """Do what `rollout` does, inside a running event loop."""
        check_entropy_source(self.parts.settings, self.parts.engine)
        ids = [question.question_id for question in questions]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"`questions` must have distinct ids, but got {twice!r} twice.")
        growth = _Growth(
            parts=self.parts,
            seed=seed,
            weights=weights or WeightsStamp(version=0),
            places=asyncio.Semaphore(self._max_concurrent_questions),
            on_tree=on_tree or (lambda _: None),
        )
        try:
            if isinstance(self.parts.tools, BranchingToolRunner):
                await self.parts.tools.start()
            if self.journal is None:
                with self.parts.clock.rollout():
                    return await growth.run(questions, None)
            digests = {each.question_id: question_digest(each, self.parts.chat_format) for each in questions}
            with self.journal.open(name, seed, growth.stamp, digests, whole_only=self.whole_only) as session:
                with self.parts.clock.rollout():
                    trees = await growth.run(questions, session)
                session.is_complete = True
                return trees
        finally:
            if isinstance(self.parts.tools, BranchingToolRunner):
                await self.parts.tools.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growth:
    """One call of `rollout`."""

    parts: RolloutParts
    seed: int
    weights: WeightsStamp
    places: asyncio.Semaphore
    on_tree: Callable[[RolloutTree], object]

    @property
    def stamp(self) -> str:
        # Without a digest nobody knows whether the weights are the same, so no two rollouts share a stamp.
        return f"{self.weights.digest or uuid4().hex}-{signature(self.parts)}"

    async def run(self, questions: Sequence[Question], session: JournalSession | None) -> list[RolloutTree]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._grow(question, session)) for question in questions]
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors
        return [task.result() for task in tasks]

    async def _grow(self, question: Question, session: JournalSession | None) -> RolloutTree:
        finished = None if session is None else session.trees.get(question.question_id)
        if finished is not None:
            finished.question = question
            self.on_tree(finished)
            return finished
        async with self.places:
            tree = await self._rollout(question, session).grow()
        tree.weights_version = self.weights.version
        if session is not None:
            session.add(tree)
        self.on_tree(tree)
        return tree

    def _rollout(self, question: Question, session: JournalSession | None) -> GroupRollout:
        if session is None:
            return GroupRollout(self.parts, question, self.seed)
        record, sink = session.records.get(question.question_id), session.sink(question)
        return GroupRollout(self.parts, question, self.seed, record, sink)


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of this library in a nest of groups, or else the very first one."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [errors]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, AepoError)), leaves[0])
