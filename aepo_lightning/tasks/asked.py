"""The seam where a task is asked: what it answers is checked, and a failure is told with its name."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from aepo_lightning.contracts.blame import describe_failure, part_name
from aepo_lightning.contracts.question import Demonstration, DemonstrationSource, Message, Question, Split, Task
from aepo_lightning.errors import AepoError, DataError, boundary
from aepo_lightning.tasks.prompts import is_unicode

T = TypeVar("T")


def ask_question(task: Task, split: Split, index: int) -> Question:
    """Return question `index` of a split, checked.

    Raises:
        DataError: If the task raises, or its answer is no question with messages and answers that are texts.
    """
    what = f"question({split!r}, {index})"
    found = _call(task, what, lambda: task.question(split, index))
    if not isinstance(found, Question):
        raise _refusal(task, what, "return a `Question`", found)
    return _checked(task, what, found)


def ask_size(task: Task, split: Split) -> int | None:
    """Return the size of a split, checked; None if it has no end.

    Raises:
        DataError: If the task raises, or its answer is neither a count nor None.
    """
    what = f"num_questions({split!r})"
    found = _call(task, what, lambda: task.num_questions(split))
    if found is None:
        return None
    failures: list[Exception] = []
    with boundary(failures.append):
        size = operator.index(found)  # of numpy, too
        if size >= 0 and not isinstance(found, bool):
            return size
    raise _refusal(task, what, "return a count or None", found)


def ask_demonstration(source: DemonstrationSource, index: int) -> Demonstration:
    """Return demonstration `index`, checked.

    Raises:
        DataError: If the source raises, or its answer is no demonstration with a turn.
    """
    what = f"demonstration({index})"
    found = _call(source, what, lambda: source.demonstration(index))
    if not isinstance(found, Demonstration) or not found.turns:
        raise _refusal(source, what, "return a `Demonstration` with a turn", found)
    return found


def _call(task: object, what: str, ask: Callable[[], T]) -> T:
    failures: list[Exception] = []
    with boundary(failures.append):
        return ask()
    error = failures[0]
    if isinstance(error, AepoError | IndexError):
        raise error
    problem = f"`{what}` of the task `{part_name(task)}` must not fail, but raised {describe_failure(error)}."
    raise DataError(problem) from error


def _checked(task: Task, what: str, question: Question) -> Question:
    """Return a question whose parts are tuples of texts and messages."""
    messages, answers = question.messages, question.answers
    if not isinstance(question.question_id, str) or not question.question_id:
        raise _refusal(task, what, "return a question with a text as `question_id`", question.question_id)
    if not (isinstance(messages, tuple | list) and messages and all(isinstance(each, Message) for each in messages)):
        raise _refusal(task, what, "return a question with `Message`s in `messages`", messages)
    if not all(isinstance(text, str) for message in messages for text in (message.role, message.content)):
        raise _refusal(task, what, "return a question whose messages have a text as role and content", messages)
    if not (isinstance(answers, tuple | list) and all(isinstance(each, str) for each in answers)):
        raise _refusal(task, what, "return a question with a tuple of texts in `answers`", answers)
    for text in (*(message.content for message in messages), *answers):
        if not is_unicode(text):
            raise _refusal(task, what, "return texts without half a surrogate pair", text)
    if isinstance(messages, tuple) and isinstance(answers, tuple):
        return question
    return replace(question, messages=tuple(messages), answers=tuple(answers))


def _refusal(task: object, what: str, rule: str, found: object) -> DataError:
    return DataError(
        f"`{what}` of the task `{part_name(task)}` must {rule}, but got {type(found).__name__} {found!r:.80}."
    )
