"""Which questions an iteration and an evaluation ask, and which of them are this rank's."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from aepo_lightning.contracts.question import Question, Task
from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout import derive_seed
from aepo_lightning.tasks.asked import ask_question, ask_size

logger = logging.getLogger(__name__)

_ENDLESS_PASS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOrder:
    """Which rollout: all that its trees depend on, apart from weights."""

    questions: Sequence[Question]
    seed: int
    name: str
    """Of the rollout in the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionStream:
    """A task, read by position: the same position gives the same questions, however many ranks share them."""

    task: Task
    questions_per_iteration: int
    num_val_questions: int | None = None
    """None asks all."""
    seed: int = 0
    """Of the run."""

    def order(self, iteration: int, num_asked: int, rank: int = 0, num_ranks: int = 1) -> RolloutOrder:
        """Return a rank's share of an iteration, which asks its questions after those that were asked before it."""
        return RolloutOrder(
            questions=self.train(num_asked, rank, num_ranks),
            seed=derive_seed(self.seed, "train", iteration),
            name=f"train-{iteration:05d}-rank{rank}",
        )

    def val_order(self, questions: Sequence[Question]) -> RolloutOrder:
        """Return the rollout of some validation questions, with the same seeds at every evaluation."""
        return RolloutOrder(questions=questions, seed=derive_seed(self.seed, "val"), name="val")

    def train(self, num_asked: int, rank: int = 0, num_ranks: int = 1) -> list[Question]:
        """Return a rank's share of the questions of an iteration, under ids that are unique in the run.

        Args:
            num_asked: Questions that were asked before it.
            rank: Whose share.
            num_ranks: How many ranks share the questions.
        """
        # Strided, so that every optimiser step has the same questions however many ranks share them.
        indices = range(num_asked, num_asked + self.questions_per_iteration)[rank::num_ranks]
        found = [(index, ask_question(self.task, "train", index)) for index in indices]
        return [replace(question, question_id=f"{index}:{question.question_id}") for index, question in found]

    def asked(self, question_id: str) -> Question | None:
        """Return the training question that has an id of `train`; None if the task has another one in its place."""
        number = question_id.partition(":")[0]
        if not number.isdecimal():
            return None
        try:
            (found,) = replace(self, questions_per_iteration=1).train(int(number))
        except IndexError:
            return None
        return found if found.question_id == question_id else None

    def state(self, num_asked: int, num_steps_left: int = 0) -> dict[str, Any]:
        """Return a position as plain values: how many questions were asked, and the last of them.

        Args:
            num_asked: Of the training questions, over all ranks.
            num_steps_left: Optimiser steps that were still to come of the iteration which asked the last of them.
        """
        last = None if not num_asked else _names(ask_question(self.task, "train", num_asked - 1))
        return {"num_asked": num_asked, "last_asked": last, "num_steps_left": num_steps_left}

    def position(self, state: Mapping[str, Any]) -> int:
        """Return how many questions were asked before a saved position.

        That is 0 if the questions are others than those of the run which saved it: its last one is not in its place,
        neither by its id nor by its text. A place in other data says nothing, so all of them are asked.

        Args:
            state: What `state` returned, and the `iteration`. Without `num_asked` every iteration had as many questions
                as they have here.
        """
        if left := state.get("num_steps_left", 0):
            logger.warning(
                "The checkpoint was saved within an iteration. What was rolled out for its last %d optimiser steps is "
                "not there any more, and the iteration goes on with as many of the next. Continue from the end of an "
                "iteration, as `AtomicCheckpoint` saves it, to leave out no question.",
                left,
            )
        num_asked = int(state.get("num_asked", int(state["iteration"]) * self.questions_per_iteration))
        last = state.get("last_asked")
        if last is None or not num_asked:
            return num_asked
        found = _names(ask_question(self.task, "train", num_asked - 1))
        if any(own == other for own, other in zip(found, last, strict=True)):
            return num_asked
        logger.warning(
            "The last question that the checkpoint asked, its number %d, was %r, but here it is %r. The data are other "
            "ones, so the run goes on with their first question.",
            num_asked - 1,
            last[0],
            found[0],
        )
        return 0

    @property
    def num_iterations_per_pass(self) -> int:
        """Iterations that ask every training question at least once; of a task without end, a good many."""
        available = ask_size(self.task, "train")
        return _ENDLESS_PASS if available is None else -(-available // self.questions_per_iteration)

    @property
    def num_val(self) -> int:
        """Validation questions over all ranks.

        Raises:
            ConfigError: If the task has no end and no number was asked for.
        """
        available = ask_size(self.task, "val")
        number = self.num_val_questions if self.num_val_questions is not None else available
        if number is None:
            raise ConfigError("`num_val_questions` must be given for a task without end, but got None.")
        return number if available is None else min(number, available)

    def val(self, rank: int = 0, num_ranks: int = 1) -> list[Question]:
        """Return a rank's share of the validation questions.

        Raises:
            ConfigError: If the task has no end and no number was asked for.
        """
        return [ask_question(self.task, "val", index) for index in range(self.num_val)[rank::num_ranks]]


def _names(question: Question) -> list[str]:
    """Return what a question is known by: its id, and a digest of its last message."""
    text = question.messages[-1].content if question.messages else ""
    return [question.question_id, blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()]
