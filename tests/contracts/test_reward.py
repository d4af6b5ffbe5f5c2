"""What a reward answers: numbers of any kind are taken, anything else is refused with its name and the question."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from aepo_lightning.contracts.reward import RewardLimits, RewardOutput, checked_output
from aepo_lightning.contracts.reward_term import TermOutput, checked_term
from aepo_lightning.errors import ConfigError, RewardError


def check(value):
    return checked_output(value, "my.reward", "q-7")


NUMBERS = [
    1,
    True,
    1.0,
    Decimal(1),
    Fraction(1),
    np.float32(1),
    np.int64(1),
    np.bool_(True),
    np.array(1.0),
    torch.tensor(1.0),
    torch.tensor([1.0], requires_grad=True),
    torch.tensor(1, dtype=torch.bfloat16),
    torch.tensor(True),
]


def kind(value):
    return f"{type(value).__name__}-{getattr(value, 'dtype', '')}"


@pytest.mark.parametrize("value", NUMBERS, ids=kind)
def test_numbers_of_any_kind_are_rewards(value):
    found = check(value)
    assert found == RewardOutput(reward=1.0, is_correct=True, is_well_formed=True)
    assert (type(found.reward), type(found.is_correct)) == (float, bool)


@pytest.mark.parametrize("value", NUMBERS, ids=kind)
def test_numbers_of_any_kind_stand_in_an_output(value):
    found = check(RewardOutput(reward=value, is_correct=value, is_well_formed=value, f1=value, answer="x"))
    assert found == RewardOutput(reward=1.0, is_correct=True, is_well_formed=True, f1=1.0, answer="x")
    assert {type(found.reward), type(found.f1)} == {float}
    assert {type(found.is_correct), type(found.is_well_formed)} == {bool}


def test_an_output_of_plain_numbers_is_taken_as_it_is():
    output = RewardOutput(reward=0.5, is_correct=False, is_well_formed=True)
    assert check(output) is output


@pytest.mark.parametrize(
    "value",
    [
        None,
        math.nan,
        math.inf,
        np.float32("nan"),
        torch.tensor(math.inf),
        torch.tensor([1.0, 2.0]),
        "0.5",
        b"1",
        [1.0],
        {"reward": 1.0},
        (1.0, True),
        1j,
        10**400,
        1e39,
        print,
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_what_is_no_number_is_refused_by_name_with_the_question(value):
    with pytest.raises(RewardError, match=r"`my\.reward` must return a finite number .* but got .* question 'q-7'"):
        check(value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reward": None}, "a finite number up to 1e\\+12 in `reward`, but got NoneType None"),
        ({"reward": math.nan}, "in `reward`, but got float nan"),
        ({"f1": "1"}, "in `f1`, but got str '1'"),
        ({"is_correct": None}, "a truth value in `is_correct`, but got NoneType"),
        ({"is_correct": 0.5}, "a truth value in `is_correct`, but got float 0.5"),
        ({"is_well_formed": "yes"}, "in `is_well_formed`, but got str 'yes'"),
        ({"answer": None}, "a text in `answer`, but got NoneType"),
        ({"has_failed": "no"}, "a truth value in `has_failed`, but got str"),
        ({"terms": {"length": math.nan}}, "finite numbers .* by names .* in `terms`, but got dict {'length': nan}"),
        ({"terms": {"my term": 1.0}}, "by names of letters, digits and underscores in `terms`"),
        ({"terms": {1: 1.0}}, "in `terms`"),
        ({"terms": [("length", 1.0)]}, "in `terms`, but got list"),
    ],
)
def test_a_field_that_is_no_such_thing_is_named(changes, named):
    output = RewardOutput(**({"reward": 1.0, "is_correct": True, "is_well_formed": True} | changes))
    with pytest.raises(RewardError, match=named):
        check(output)


def test_terms_of_any_numbers_become_plain_ones():
    found = check(RewardOutput(reward=1.0, is_correct=True, is_well_formed=True, terms={"a": np.float32(1), "b2": 2}))
    assert found.terms == {"a": 1.0, "b2": 2.0}
    assert {type(value) for value in found.terms.values()} == {float}


def test_terms_of_plain_numbers_are_copied():
    output = RewardOutput(reward=1.0, is_correct=True, is_well_formed=True, terms={"a": 1.0})
    found = check(output)
    output.terms["a"] = 2.0  # an author may use the same mapping again
    assert found.terms == {"a": 1.0}


TERM = {"value": 0.5, "is_correct": None, "f1": None, "is_scored": True}


def test_a_term_of_plain_numbers_is_taken_as_it_is_and_others_become_plain():
    output = TermOutput(**TERM)
    assert checked_term(output, "term `a`", "q-7") is output
    found = checked_term(
        TermOutput(**TERM | {"value": np.float32(1), "f1": 1, "is_correct": np.bool_(False)}), "a", "q"
    )
    assert found == TermOutput(**TERM | {"value": 1.0, "f1": 1.0, "is_correct": False})
    assert (type(found.f1), type(found.is_correct)) == (float, bool)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"value": None}, "a finite number up to 1e\\+12 in `value`, but got NoneType None"),
        ({"f1": math.nan}, "a finite number up to 1e\\+12 or None in `f1`, but got float nan"),
        ({"is_correct": "yes"}, "a truth value or None in `is_correct`, but got str"),
        ({"is_final": None}, "a truth value in `is_final`, but got NoneType"),
        ({"answer": None}, "a text in `answer`, but got NoneType"),
    ],
)
def test_a_field_of_a_term_that_is_no_such_thing_is_named(changes, named):
    with pytest.raises(RewardError, match=rf"The term `a` must return {named} .*for question 'q-7'"):
        checked_term(TermOutput(**TERM | changes), "term `a`", "q-7")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline_s", 0.0),
        ("deadline_s", math.nan),
        ("max_concurrent", 0),
        ("isolation", "jail"),
        ("on_error", "warn"),
        ("on_error", True),
        ("on_error", math.nan),
        ("on_error", None),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checks")
def test_limits_without_meaning_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        RewardLimits(**{name: value})


def test_limits_are_given_as_a_mapping_too():
    assert RewardLimits.of({"max_concurrent": 8}) == RewardLimits.of(RewardLimits(max_concurrent=8))
    with pytest.raises(ConfigError, match=r"`limits` must have keys of RewardLimits, but got 'deadline'\. Did you"):
        RewardLimits.of({"deadline": 3.0})
