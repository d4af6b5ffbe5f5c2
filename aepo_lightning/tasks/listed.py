"""Questions from a list: rows in memory as a task."""

from collections.abc import Iterable, Mapping
from typing import Any

from aepo_lightning.contracts.question import Message, Question, Split, Task
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.splits import QuestionSplits


class ListedQuestions:
    """Rows with a question and its accepted answers, such as `{"question": "2 + 2?", "answer": "4"}`.

    `question` is a text, or `messages` is a list of `{"role": ..., "content": ...}` (or `Message`s). `answer` or
    `answers` is a text, a number or a list of them. Every other field is kept as metadata. Training goes through the
    rows in another order in every epoch.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], val_rows: Iterable[Mapping[str, Any]] = (), seed: int = 0
    ) -> None:
        """Read the rows, so that every fault shows at the start.

        Args:
            rows: Of training.
            val_rows: Of validation.
            seed: Of the order of the training questions.

        Raises:
            DataError: If a row has no question or no answer.
            ConfigError: If there are no training rows.
        """
        train = tuple(_question("train", index, row) for index, row in enumerate(rows))
        val = tuple(_question("val", index, row) for index, row in enumerate(val_rows))
        if not train:
            raise ConfigError("`rows` must have a row at least, but got none. Pass the questions of training.")
        self._splits = QuestionSplits(train=train, val=val, seed=seed, reports={})

    def num_questions(self, split: Split) -> int | None:
        """Return the number of rows of a split, hence the length of an epoch."""
        return self._splits.num_questions(split)

    def question(self, split: Split, index: int) -> Question:
        """Return question `index`; past the end of training another epoch begins in another order.

        Raises:
            IndexError: If the index is negative or beyond the end of validation.
        """
        return self._splits.question(split, index)


def as_task(task: Task | Iterable[Mapping[str, Any]]) -> Task:
    """Return a task: what is one already as it is, rows as `ListedQuestions`.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, Iterable) or isinstance(task, str | bytes | Mapping):
        raise ConfigError(
            f"`task` must be a `Task` or an iterable of rows, but got {task!r}. A file is `JsonlQuestions(path)`."
        )
    return ListedQuestions(task)


def _question(split: Split, index: int, row: Mapping[str, Any]) -> Question:
    where = f"Row {index} of {split}"
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be a mapping with `question` and `answer`, but got {row!r}.")
    fields = dict(row)
    return Question(
        question_id=f"{split}-{index}",
        messages=_messages(where, fields),
        answers=_answers(where, fields),
        metadata=fields,
    )


def _messages(where: str, fields: dict[str, Any]) -> tuple[Message, ...]:
    asked, messages = fields.pop("question", None), fields.pop("messages", None)
    if messages is None and isinstance(asked, str) and asked.strip():
        return (Message(role="user", content=asked),)
    if asked is not None or not messages:
        raise DataError(f"{where} must have a text in `question` or a list in `messages`, but got {asked!r}.")
    return tuple(each if isinstance(each, Message) else Message(**each) for each in messages)


def _answers(where: str, fields: dict[str, Any]) -> tuple[str, ...]:
    found = fields.pop("answers", None)
    value = fields.pop("answer", found)
    answers = tuple(str(each) for each in (value if isinstance(value, list | tuple) else [value]) if each is not None)
    if not any(answer.strip() for answer in answers):
        raise DataError(f"{where} must have an accepted answer in `answer` or `answers`, but got {value!r}.")
    return answers
