"""Questions from a list: rows in memory as a task."""

from collections.abc import Iterable, Mapping
from typing import Any

from aepo_lightning.contracts.question import Message, OnObjection, Question, Split, Task
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.answers import read_answers
from aepo_lightning.tasks.paths import BrokenRuleError
from aepo_lightning.tasks.prompts import check_text, read_messages
from aepo_lightning.tasks.repair import repair_question
from aepo_lightning.tasks.splits import QuestionSplits, Source, StoredQuestions, check_choices


class ListedQuestions(StoredQuestions):
    """Rows with a question and its accepted answers, such as `{"question": "2 + 2?", "answer": "4"}`.

    `question` is a text, or `messages` is a list of `{"role": ..., "content": ...}` (or `Message`s). `answer` or
    `answers` is a text, a number or a list of them. Every other field is kept as metadata. Training goes through the
    rows in another order in every epoch.
    """

    on_bad_gold: OnObjection

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        val_rows: Iterable[Mapping[str, Any]] = (),
        seed: int = 0,
        on_bad_gold: OnObjection = "error",
    ) -> None:
        """Read the rows, so that every fault shows at the start.

        Args:
            rows: Of training.
            val_rows: Of validation.
            seed: Of the order of the training questions.
            on_bad_gold: What happens to answers that would not earn the full reward; see `OwnFiles`.

        Raises:
            DataError: If a row has no question or no answer.
            ConfigError: If there are no training rows.
        """
        train, val = _source("train", rows), _source("val", val_rows)
        if not train.questions:
            raise ConfigError("`rows` must have a row at least, but got none. Pass the questions of training.")
        check_choices("merge", on_bad_gold)
        splits = QuestionSplits([train], [val] if val.questions else [], seed)
        for name, value in (("_splits", splits), ("on_bad_gold", on_bad_gold)):
            object.__setattr__(self, name, value)  # of a frozen class


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


def _source(split: Split, rows: Iterable[Mapping[str, Any]]) -> Source:
    read = [_question(split, index, row) for index, row in enumerate(rows)]
    questions = [repair_question(question) for question in read]
    return Source(
        name=f"Rows of {split}",
        questions=questions,
        places=[f"row {index}" for index in range(len(questions))],
        num_repaired=sum(new is not old for new, old in zip(questions, read, strict=True)),
    )


def _question(split: Split, index: int, row: Mapping[str, Any]) -> Question:
    where = f"Row {index} of {split}"
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be a mapping with `question` and `answer`, but got {row!r}.")
    fields = dict(row)
    try:
        return Question(
            question_id=f"{split}-{index}",
            messages=_messages(where, fields),
            answers=_answers(where, fields),
            metadata=fields,
        )
    except BrokenRuleError as error:
        raise DataError(f"{where} must {error.rule}, but got {error.value!r:.80}.") from None


def _messages(where: str, fields: dict[str, Any]) -> tuple[Message, ...]:
    asked, messages = fields.pop("question", None), fields.pop("messages", None)
    if messages is None and isinstance(asked, str) and asked.strip():
        return (Message(role="user", content=check_text(asked)),)
    if asked is not None or not messages:
        raise DataError(f"{where} must have a text in `question` or a list in `messages`, but got {asked!r}.")
    return read_messages(messages)


def _answers(where: str, fields: dict[str, Any]) -> tuple[str, ...]:
    found = fields.pop("answers", None)
    value = fields.pop("answer", found)
    try:
        answers = tuple(map(check_text, read_answers(value)))
    except BrokenRuleError as error:
        raise DataError(f"{where}: `answer` must {error.rule}, but got {value!r:.80}.") from None
    if not answers:
        raise DataError(f"{where} must have an accepted answer in `answer` or `answers`, but got {value!r}.")
    return answers
