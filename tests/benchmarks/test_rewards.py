"""The benchmark of rewards: verdicts over its pairs, and what hostile expressions do to those between them."""

import random

import pytest

from tests.support.extras import needs

needs("math_verify", "math")

from benchmarks.support import rewards_pairs, rewards_parts  # noqa: E402 - needs the extra
from benchmarks.support.rewards_pairs import GOLD, hostile_answers, ordinary_pairs  # noqa: E402


def test_pairs_come_from_the_seed_alone():
    assert list(ordinary_pairs(50)) == list(ordinary_pairs(50)) != list(ordinary_pairs(50, seed=1))
    assert hostile_answers(20, 2) == hostile_answers(20, 2)
    assert all(each.answer != each.gold for each in ordinary_pairs(500))


def test_no_hostile_expression_is_the_accepted_answer():
    nested = (rewards_pairs._nested(random.Random(seed)) for seed in range(1_000))
    assert all(each.strip("{(})") != GOLD for each in nested)


def test_every_rule_is_measured():
    assert {"TokenF1", "GaiaMatch", "HLEMatch"} <= set(rewards_parts.measure_rules(10))


@pytest.mark.slow
def test_verdicts_over_ordinary_pairs_are_right():
    assert rewards_parts.measure_mathematics(300)["wrong"] == 0


@pytest.mark.slow
def test_hostile_expressions_do_no_harm_to_the_pairs_between_them():
    figures = rewards_parts.measure_hostile(100, 1, limit_s=30.0)
    assert figures["ordinary"] == 10
    assert figures["ordinary_wrong"] == figures["called_right"] == 0
    assert figures["longest_without_a_verdict_s"] < 60
