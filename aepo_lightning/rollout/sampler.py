"""Rolls out many questions at once: every chain is a task of its own, and no question waits for another.

The engine batches whatever is ready. What bounds the work in flight is the number of questions that grow at once, and
the engine's own limits beneath.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aepo_lightning.errors import AepoError
from aepo_lightning.rollout.group import GroupRollout, RolloutParts
from aepo_lightning.rollout.journal import RolloutJournal
from aepo_lightning.tree import RolloutTree
from aepo_lightning.types import Question

ResultT = TypeVar("ResultT")


class RolloutSampler:
    """Turns questions into finished rollout trees."""

    def __init__(
        self, parts: RolloutParts, max_concurrent_questions: int = 64, journal: RolloutJournal | None = None
    ) -> None:
        """Keep the parts.

        Args:
            parts: Engine, tools, reward, protocol, budget, branch policy and settings.
            max_concurrent_questions: Questions that grow at once; the others wait for a free place.
            journal: Where finished trees are written at once. None keeps them in memory only.

        Raises:
            ValueError: If `max_concurrent_questions` is not positive.
        """
        if max_concurrent_questions < 1:
            raise ValueError(f"`max_concurrent_questions` must be at least 1, but got {max_concurrent_questions}.")
        self.parts = parts
        self._max_concurrent_questions = max_concurrent_questions
        self._journal = journal

    def rollout(
        self,
        questions: Sequence[Question],
        seed: int,
        name: str = "rollout",
        on_tree: Callable[[RolloutTree], object] | None = None,
    ) -> list[RolloutTree]:
        """Grow one tree per question and return them in the order of the questions.

        Args:
            questions: What to ask. The same question may stand in the list once only.
            seed: Every random number derives from it and from where it is used.
            name: Under which the journal keeps the trees.
            on_tree: Called with each tree as soon as it is finished, for progress.

        Raises:
            ValueError: If two questions have the same id.
            EngineError: If the engine failed; trees that were finished are in the journal.
        """
        return run_in_event_loop(self.rollout_async(questions, seed, name, on_tree))

    async def rollout_async(
        self,
        questions: Sequence[Question],
        seed: int,
        name: str = "rollout",
        on_tree: Callable[[RolloutTree], object] | None = None,
    ) -> list[RolloutTree]:
        """Do what `rollout` does, inside a running event loop."""
        ids = [question.question_id for question in questions]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"`questions` must have distinct ids, but got {twice!r} twice.")
        places = asyncio.Semaphore(self._max_concurrent_questions)

        async def grow(question: Question) -> RolloutTree:
            async with places:
                tree = await GroupRollout(self.parts, question, seed).grow()
            if self._journal is not None:
                self._journal.append(name, tree)
            if on_tree is not None:
                on_tree(tree)
            return tree

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(grow(question)) for question in questions]
        except BaseExceptionGroup as errors:
            raise _first_error(errors) from errors
        return [task.result() for task in tasks]


def _first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
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


def run_in_event_loop(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine to its end, also where an event loop is already running (a notebook): then in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="aepo-rollout") as pool:
        return pool.submit(asyncio.run, work).result()
