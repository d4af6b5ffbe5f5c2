"""Which choices an answer names: by construction from templates, and examples that name none."""

import asyncio
import itertools

import pytest

from aepo_lightning.contracts.checker import Claim
from aepo_lightning.rewards.checkers import MultipleChoice
from aepo_lightning.rewards.checkers.multiple_choice import is_same_choice, named_choices

CITIES = ("London", "Paris", "Rome", "New York")
ONE = [
    "{0}", "({0})", "{0}.", "[{0}]", "**{0}**", "\\boxed{{{0}}}", "$\\text{{{0}}}$", "option {0}",
    "Option ({0})", "The answer is {0}", "the correct answer is: ({0}).", "Answer: {0}", "Answer: **{0}**",
    "ANSWER: ${0}$", "{0}. {1}", "({0}) {1}", "{0}: {1}", "The answer is {0}. {1}", "{1}", "{1}.",
    "Option {0} is correct", "The answer is {0}, {1}", "{0}. because of the river",
    "The answer is {0} because it is so", " {0}\r\n",
]  # fmt: skip
TWO = [
    "{0}, {1}", "{0} and {1}", "({0}), ({1})", "({0}) ({1})", "{0}{1}", "{0}/{1}", "Options {0} and {1}",
    "{0} & {1}.",
]  # fmt: skip
NONE = [
    "A dog", "a cat", "I think so", "not B", "Neither A nor B", "BAD", "ADB", "", "Berlin",
    "The answer is a dog", "Answer seems to be right", "B. London", "The answer is C. Paris", "E", "(E)",
    "A. Einstein B", "B" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("template", ONE)
def test_one_choice_is_named(template):
    for letter, city in zip("ABCD", CITIES, strict=True):
        assert named_choices(template.format(letter, city), CITIES) == {letter}
        if "{1}" not in template:
            assert named_choices(template.format(letter.lower()), CITIES) == {letter}
            assert named_choices(template.format(letter)) == {letter}


@pytest.mark.parametrize("template", TWO)
def test_several_choices_are_named(template):
    for letters in itertools.combinations("ABCD", 2):
        assert named_choices(template.format(*letters), CITIES) == set(letters)


@pytest.mark.parametrize("text", [text for text in NONE if text != "A. Einstein B"])
def test_no_choice_is_named(text):
    assert named_choices(text, CITIES) == frozenset()


def test_full_width_letters_and_brackets():
    assert named_choices("\uff08\uff22\uff09", CITIES) == named_choices("\uff22", CITIES) == {"B"}


@pytest.mark.parametrize(
    ("answer", "gold", "is_right"),
    [
        ("(B)", "B", True),
        ("B", "Paris", True),
        ("the paris", "B", True),
        ("New York", "(D)", True),
        ("A and B", "B", False),
        ("B or C", "B", False),
        ("D, A", "AD", True),
        ("A", "AD", False),
        ("yes", "Yes.", True),
        ("no", "yes", False),
    ],
)
def test_answers_against_accepted_ones(answer, gold, is_right):
    assert is_same_choice(answer, gold, CITIES) is is_right
    claim = Claim(question="", golds=("Rome and more", gold), answer=answer, choices=CITIES)
    assert asyncio.run(MultipleChoice()(claim)).is_correct is is_right


def test_a_text_of_two_choices_is_not_clear():
    assert named_choices("red", ("red", "Red.", "blue")) == frozenset()
