"""Rows in memory: numbers of any kind are answers, what is none is refused with its row."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks import ListedQuestions

SOLVED = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        (5.0, ("5",)),
        (np.float32(0.5), ("0.5",)),
        (np.int64(7), ("7",)),
        (np.array(["a", "b"]), ("a", "b")),
        (torch.tensor(3), ("3",)),
        (("x", 2), ("x", "2")),
        ({"target": [4]}, ("4",)),
        (Fraction(1, 3), ("1/3",)),
        (1e30, ("1e+30",)),
    ],
    ids=["whole", "numpy", "numpy_int", "array", "torch", "tuple", "target", "fraction", "huge"],
)
def test_answers_are_numbers_of_any_kind(answer, answers):
    assert ListedQuestions([{"question": "q", "answer": answer}]).question("train", 0).answers == answers


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"answer": math.nan}, "Row 1 of train must have an accepted answer"),
        ({"answer": math.inf}, "Row 1 of train: `answer` must be .* and a number must be finite, but got inf"),
        ({"answer": True}, "Row 1 of train: `answer` must be a text, a number or a list of them, such as"),
        ({"answer": {"value": 1}}, "Row 1 of train: `answer` must be .* named with a dot"),
        ({"answer": "\ud800"}, "Row 1 of train: `answer` must be text without half a surrogate pair"),
        ({"answer": "x", "question": "\ud800"}, "Row 1 of train must be text without half a surrogate pair"),
        ({"answer": "x", "question": None, "messages": [{"role": 1}]}, "Row 1 of train must have a text role"),
        ({"answer": "x", "question": None, "messages": SOLVED}, "Row 1 of train must not end with the assistant"),
        ({"answer": "x", "messages": SOLVED[:1]}, "Row 1 of train must have a text in `question` or a list in"),
    ],
    ids=["nan", "inf", "bool", "mapping", "surrogate", "surrogate_question", "message", "solved", "both"],
)
def test_rows_that_cannot_be_used_are_named(row, named):
    with pytest.raises(DataError, match=named):
        ListedQuestions([{"question": "q", "answer": "x"}, {"question": "q", **row}])


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_row_and_no_choice_is_refused():
    with pytest.raises(DataError, match=r"Row 0 of train must be a mapping with `question` and `answer`, but got 'q'"):
        ListedQuestions(["q"])
    with pytest.raises(ConfigError, match="`on_bad_gold` must be one of"):
        ListedQuestions([{"question": "q", "answer": "x"}], on_bad_gold="warn")
