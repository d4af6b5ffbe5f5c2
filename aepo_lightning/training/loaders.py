"""What the trainer reads its data from: optimiser steps that are there or are made, and validation trees likewise.

None is a `DataLoader`, for which Lightning would ask for worker processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tree import RolloutTree, TreeBatch

StepT = TypeVar("StepT")


@dataclass(frozen=True, slots=True)
class StepLoader(Generic[StepT]):
    """Steps that are made while they are asked for, from the first one on with each iteration."""

    make: Callable[[], Iterator[StepT]]

    def __iter__(self) -> Iterator[StepT]:
        """Yield the steps."""
        return self.make()


class MinibatchLoader:
    """The optimiser steps of one iteration."""

    def __init__(self, minibatches: Sequence[Minibatch]) -> None:
        self._minibatches = minibatches

    def __len__(self) -> int:
        return len(self._minibatches)

    def __iter__(self) -> Iterator[Minibatch]:
        return iter(self._minibatches)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationLoader:
    """Chunks of validation questions, rolled out when they are asked for."""

    questions: Sequence[Question]
    chunk_size: int
    evaluate: Callable[[Sequence[Question]], list[RolloutTree]]
    before: Callable[[], None]
    """Called before the first chunk."""
    after: Callable[[], None]
    """Called after the last chunk."""
    pass_at: tuple[int, ...] = (1,)
    """The k of each pass@k."""

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-len(self.questions) // self.chunk_size)

    def __iter__(self) -> Iterator[TreeBatch]:
        """Yield the trees of each chunk."""
        self.before()
        for start in range(0, len(self.questions), self.chunk_size):
            trees = self.evaluate(self.questions[start : start + self.chunk_size])
            yield TreeBatch(trees=trees, pass_at=self.pass_at)
        self.after()
