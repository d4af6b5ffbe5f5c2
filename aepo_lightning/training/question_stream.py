"""Which questions an iteration and an evaluation ask, and which of them are this rank's."""

from dataclasses import dataclass, replace

from aepo_lightning.contracts.question import Question, Task
from aepo_lightning.errors import ConfigError

_ENDLESS_PASS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionStream:
    """A task, read by position: the same position gives the same questions, however many ranks share them."""

    task: Task
    questions_per_iteration: int
    num_val_questions: int | None = None
    """None asks all."""

    def train(self, num_asked: int, rank: int = 0, num_ranks: int = 1) -> list[Question]:
        """Return a rank's share of the questions of an iteration, under ids that are unique in the run.

        Args:
            num_asked: Questions that were asked before it.
            rank: Whose share.
            num_ranks: How many ranks share the questions.
        """
        # Strided, so that every optimiser step has the same questions however many ranks share them.
        indices = range(num_asked, num_asked + self.questions_per_iteration)[rank::num_ranks]
        found = [(index, self.task.question("train", index)) for index in indices]
        return [replace(question, question_id=f"{index}:{question.question_id}") for index, question in found]

    @property
    def num_iterations_per_pass(self) -> int:
        """Iterations that ask every training question at least once; of a task without end, a good many."""
        available = self.task.num_questions("train")
        return _ENDLESS_PASS if available is None else -(-available // self.questions_per_iteration)

    @property
    def num_val(self) -> int:
        """Validation questions over all ranks.

        Raises:
            ConfigError: If the task has no end and no number was asked for.
        """
        available = self.task.num_questions("val")
        number = self.num_val_questions if self.num_val_questions is not None else available
        if number is None:
            raise ConfigError("`num_val_questions` must be given for a task without end, but got None.")
        return number if available is None else min(number, available)

    def val(self, rank: int = 0, num_ranks: int = 1) -> list[Question]:
        """Return a rank's share of the validation questions.

        Raises:
            ConfigError: If the task has no end and no number was asked for.
        """
        return [self.task.question("val", index) for index in range(self.num_val)[rank::num_ranks]]
