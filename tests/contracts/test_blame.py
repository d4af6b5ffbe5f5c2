"""What a user wrote is told by the name that its author gave it, and by the line that failed."""

from functools import partial

import pytest

from aepo_lightning.contracts.blame import describe_failure, is_own, part_name
from aepo_lightning.rewards import FunctionReward, PaperReward

HERE = __name__


class Judge:
    def __call__(self, sample):
        return sample

    def rate(self, sample):
        return sample


def rate(sample, weight=1.0):
    return sample * weight


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (rate, "rate"),
        (partial(rate, weight=2.0), "rate"),
        (FunctionReward(rate), "rate"),
        (Judge(), "Judge"),
        (Judge().rate, "Judge.rate"),
        (partial(Judge()), "Judge"),
    ],
    ids=["function", "partial", "wrapped", "object", "method", "partial_object"],
)
def test_a_part_is_known_by_what_its_author_wrote(part, name):
    assert part_name(part) == f"{HERE}.{name}"
    assert not is_own(part)


class MuteError(Exception):
    def __str__(self):
        raise ValueError("nothing to say")


def test_a_failure_that_cannot_say_what_it_is_is_told_all_the_same():
    assert describe_failure(MuteError()) == "MuteError: it cannot say what it is"


def test_parts_of_this_library_are_told_apart():
    assert is_own(PaperReward())


def test_a_failure_is_told_with_the_line_that_raised_it():
    with pytest.raises(ZeroDivisionError) as caught:
        rate(1 // 0)
    line = caught.tb.tb_lineno
    assert describe_failure(caught.value) == f"ZeroDivisionError: {caught.value} (test_blame.py, line {line})"
