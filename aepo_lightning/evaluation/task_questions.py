"""Questions of a task as those of a benchmark: any source that training reads, or rows in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aepo_lightning.contracts.question import Split, Task
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.benchmark import BenchmarkQuestions
from aepo_lightning.tasks import as_task
from aepo_lightning.tasks.asked import ask_question, ask_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuestions:
    """A benchmark's source that asks a task."""

    task: Task | Iterable[Mapping[str, Any]]
    """A task, or rows with `question` and `answer`."""
    split: Split = "val"
    """Rows in memory are those of `train`."""
    num_questions: int | None = None
    """The first so many. None asks all, of a task that has an end."""

    def read(self, name: str) -> BenchmarkQuestions:
        """Return the questions.

        Raises:
            DataError: If the task fails, has no questions, or has no end and no number was given.
        """
        task = as_task(self.task)
        size = ask_size(task, self.split)
        number = min((each for each in (size, self.num_questions) if each is not None), default=None)
        if not number:
            what = "no end, so that `num_questions` must be given" if number is None else f"no {self.split} questions"
            raise DataError(f"The task of the benchmark {name} must have questions, but it has {what}.")
        found = [ask_question(task, self.split, index) for index in range(number)]
        questions = tuple(replace(each, metadata={**each.metadata, "benchmark": name}) for each in found)
        return BenchmarkQuestions(questions=questions, origin=f"{type(task).__name__}, {self.split}")
