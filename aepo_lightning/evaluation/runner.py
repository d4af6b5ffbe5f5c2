"""Has questions answered by the sampler, and the answers judged while others are still being generated.

Trajectories grow in `RolloutSampler`, whose journal has every step of them; an evaluation that was cut off goes on from
there. Each finished trajectory is judged by a task of its own and appended to the file of results at once. What is
there already is neither generated nor judged again.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.evaluation.judging import TrajectoryJudge, sample_number
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.evaluation.results_file import ResultsFile
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout.sampler import RolloutSampler, first_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Questions that grow together."""

    name: str
    """In the journal."""
    questions: Sequence[Question]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRun:
    """One benchmark on its way: who answers, who judges, where it is written."""

    sampler: RolloutSampler
    """Grows independent samples: that of `RolloutParts.for_evaluation`."""
    judge: TrajectoryJudge
    seed: int
    weights: WeightsStamp
    """Of what the engine has."""
    results: ResultsFile | None = None
    """None keeps results in memory only."""
    keeps_tokens: bool = True
    """Whether trees stay whole in memory. False empties each when it is judged: the journal has it."""
    max_concurrent_checks: int = 64
    """Trajectories that are judged at the same time."""

    def run(
        self, portions: Sequence[Portion], on_tree: Callable[[RolloutTree], object] | None = None
    ) -> tuple[list[RolloutTree], list[TrajectoryResult]]:
        """Return the trees in the order of the questions, and the results that were added, as they were finished.

        Args:
            portions: What to ask, one portion after another.
            on_tree: Called with each tree as soon as it is finished, for progress.

        Raises:
            EngineError: If the engine failed. What was finished is in the journal and in the results.
            OSError: If something cannot be written.
        """
        return run_in_event_loop(self.run_async(portions, on_tree))

    async def run_async(
        self, portions: Sequence[Portion], on_tree: Callable[[RolloutTree], object] | None = None
    ) -> tuple[list[RolloutTree], list[TrajectoryResult]]:
        """Do what `run` does, inside a running event loop."""
        judging = _Judging(run=self, places=asyncio.Semaphore(self.max_concurrent_checks))
        trees: list[RolloutTree] = []
        try:
            async with asyncio.TaskGroup() as group:

                def finished(tree: RolloutTree) -> None:
                    group.create_task(judging.judge(tree))
                    if on_tree is not None:
                        on_tree(tree)

                for portion in portions:
                    trees += await self.sampler.rollout_async(
                        portion.questions, self.seed, portion.name, finished, self.weights
                    )
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors
        return trees, judging.added


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judging:
    """Judges trees as they come."""

    run: EvaluationRun
    places: asyncio.Semaphore
    added: list[TrajectoryResult] = field(default_factory=list)

    async def judge(self, tree: RolloutTree) -> None:
        """Judge the trajectories of a tree that have no result yet."""
        results, question_id = self.run.results, tree.question.question_id
        known = frozenset() if results is None else results.pairs
        due = [leaf for leaf in tree.leaves if (question_id, sample_number(leaf)) not in known]
        await asyncio.gather(*(self._judge_one(tree, leaf) for leaf in due))
        if not self.run.keeps_tokens:
            for segment in tree.segments:
                segment.token_ids, segment.logprobs, segment.entropies = [], [], []

    async def _judge_one(self, tree: RolloutTree, leaf: Leaf) -> None:
        async with self.places:
            found = await self.run.judge(tree, leaf)
        if self.run.results is not None:
            self.run.results.append(found)
        self.added.append(found)
