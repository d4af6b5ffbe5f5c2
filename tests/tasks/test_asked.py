"""The seam where a task is asked: its answers are checked, and its failures have its name."""

from dataclasses import replace

import numpy as np
import pytest

from aepo_lightning.contracts.question import Demonstration, Message, Question
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks import TrailTask
from aepo_lightning.tasks.asked import ask_demonstration, ask_question, ask_size

GOOD = Question(question_id="q", messages=(Message(role="user", content="?"),), answers=("x",))
HERE = __name__


def changed(**changes):
    question = replace(GOOD)
    for name, value in changes.items():
        object.__setattr__(question, name, value)
    return question


class Mine:
    def __init__(self, answer):
        self._answer = answer

    def _give(self):
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def question(self, split, index):  # noqa: ARG002
        return self._give()

    def num_questions(self, split):  # noqa: ARG002
        return self._give()

    def demonstration(self, index):  # noqa: ARG002
        return self._give()


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (None, "return a `Question`, but got NoneType None"),
        ({"question": "?"}, "return a `Question`, but got dict"),
        (KeyError("row"), r"not fail, but raised KeyError: 'row' \(test_asked\.py, line \d+\)"),
        (changed(question_id=3), "a text as `question_id`, but got int 3"),
        (changed(messages=()), "`Message`s in `messages`, but got tuple"),
        (changed(messages="?"), "`Message`s in `messages`, but got str"),
        (changed(answers="x"), "a tuple of texts in `answers`, but got str 'x'"),
        (changed(answers=(5,)), "a tuple of texts in `answers`, but got tuple"),
        (changed(answers=None), "a tuple of texts in `answers`, but got NoneType"),
        (changed(answers=("\ud800",)), "texts without half a surrogate pair, but got str"),
        (changed(messages=(Message(role="user", content="\ud800"),)), "texts without half a surrogate pair"),
    ],
    ids=[
        *("none", "dict", "raises", "id", "no_message", "text", "one_answer", "number", "no_answers"),
        *("half_an_answer", "half_a_question"),
    ],
)
def test_what_is_no_question_is_refused_by_name(answer, named):
    with pytest.raises(DataError, match=rf"`question\('train', 7\)` of the task `{HERE}\.Mine` must .*{named}"):
        ask_question(Mine(answer), "train", 7)


def test_questions_come_as_they_are_and_lists_become_tuples():
    assert ask_question(Mine(GOOD), "train", 0) is GOOD
    found = ask_question(Mine(changed(answers=["x"], messages=list(GOOD.messages))), "train", 0)
    assert found == GOOD


@pytest.mark.parametrize("error", [ConfigError("ours"), IndexError("beyond the end")], ids=["ours", "index"])
def test_refusals_pass_through(error):
    with pytest.raises(type(error), match=str(error)):
        ask_question(Mine(error), "train", 0)


@pytest.mark.parametrize(("answer", "size"), [(None, None), (3, 3), (np.int64(3), 3), (0, 0)], ids=str)
def test_sizes_are_counts_of_any_kind(answer, size):
    assert ask_size(Mine(answer), "val") == size


@pytest.mark.parametrize("answer", [-1, 3.0, "3", True, KeyError("row")], ids=repr)
def test_what_is_no_count_is_refused_by_name(answer):
    with pytest.raises(DataError, match=rf"`num_questions\('val'\)` of the task `{HERE}\.Mine` must"):
        ask_size(Mine(answer), "val")


def test_demonstrations_are_checked_as_well():
    task = TrailTask()
    assert ask_demonstration(task, 0) == task.demonstration(0)
    for answer in (None, Demonstration(question=GOOD, turns=()), KeyError("row")):
        with pytest.raises(DataError, match=rf"`demonstration\(3\)` of the task `{HERE}\.Mine` must"):
            ask_demonstration(Mine(answer), 3)
