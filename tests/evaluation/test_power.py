"""How many questions show a difference: by hand, by laws, and by trying it."""

import numpy as np
import pytest

from aepo_lightning.evaluation.power import (
    Spread,
    detectable_difference,
    questions_needed,
    spread_of_one,
    spread_of_pair,
)

HAND = Spread(between=0.05, within=(0.1, 0.2))


def test_the_number_of_questions_by_hand():
    # (1.959964 + 0.841621)^2 = 7.848880; V = 0.05 + 0.1 + 0.2 = 0.35; 7.848880 * 0.35 / 0.02^2 = 6867.77
    assert questions_needed(HAND, 0.02) == 6868
    # with five samples V = 0.05 + 0.06 = 0.11: 2158.44
    assert questions_needed(HAND, 0.02, num_samples=5) == 2159
    # V / d^2 = 87.5 with 0.9 and 0.01: (2.575829 + 1.281552)^2 = 14.879388; d = 0.0632456
    assert questions_needed(HAND, 0.0632456, power=0.9, level=0.01) == 1302


def test_the_detectable_difference_is_the_inverse():
    needed = questions_needed(HAND, 0.02, num_samples=3)
    assert detectable_difference(HAND, needed, num_samples=3) <= 0.02
    assert detectable_difference(HAND, needed - 1, num_samples=3) > 0.02
    # (1.959964 + 0.841621) * sqrt(0.35 / 100)
    assert detectable_difference(HAND, 100) == pytest.approx(0.165744, abs=1e-6)


def test_samples_help_up_to_what_questions_differ_by():
    numbers = [questions_needed(HAND, 0.02, num_samples=n) for n in (1, 2, 5, 100)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] >= questions_needed(Spread(between=0.05, within=(0.0, 0.0)), 0.02)
    assert questions_needed(Spread(between=0.0, within=(0.0, 0.0)), 0.02) == 2


def test_the_spread_of_a_pair_by_hand():
    values = [np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([1.0, 1.0])]
    others = [np.array([0.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 1.0])]
    # differences 1/2, 0, 1/2: variance 1/12; within 1/2, 0, 0 and 0, 0, 1/2 in the mean 1/6 each; 1/12 - 1/6 < 0
    found = spread_of_pair(values, others)
    assert (found.between, *found.within) == pytest.approx((0.0, 1 / 6, 1 / 6))
    # differences of 1, 0, 0 without noise: variance 1/3
    steady = [np.full(2, each) for each in (1.0, 0.0, 0.0)]
    zeros = [np.zeros(2)] * 3
    found = spread_of_pair(steady, zeros)
    assert (found.between, *found.within) == pytest.approx((1 / 3, 0.0, 0.0))


def test_the_spread_of_one_run_needs_to_know_how_like_the_other_is():
    steady = [np.full(2, each) for each in (1.0, 0.0, 0.0)]
    assert spread_of_one(steady, 1.0).between == 0.0
    assert spread_of_one(steady, 0.0).between == pytest.approx(2 / 3)
    assert spread_of_one(steady, 0.7).between == pytest.approx(0.2)


def test_a_pilot_of_one_sample_does_not_say_what_more_bring():
    once = [np.array([each]) for each in (1.0, 0.0, 0.0, 1.0)]
    for spread in (spread_of_pair(once, once[::-1]), spread_of_one(once, 0.9)):
        assert spread.within is None
        assert questions_needed(spread, 0.5) >= 2
        with pytest.raises(ValueError, match="`num_samples` must be 1 with a pilot of one sample"):
            questions_needed(spread, 0.5, num_samples=2)
    assert spread_of_one(once, 0.9).between == pytest.approx(2 / 3)  # variance 1/3 on either side


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"difference": 0.0}, "`difference` must be positive"),
        ({"difference": float("nan")}, "`difference` must be positive"),
        ({"power": 1.0}, "`power` must be in"),
        ({"level": 0.0}, "`level` must be in"),
    ],
)
def test_numbers_without_meaning_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        questions_needed(HAND, **({"difference": 0.02} | changes))


def test_other_numbers_without_meaning_are_refused():
    with pytest.raises(ValueError, match="`num_questions` must be at least 1"):
        detectable_difference(HAND, 0)
    with pytest.raises(ValueError, match="at least two questions with verdicts, but got 1"):
        spread_of_one([np.zeros(2)], 0.5)
    with pytest.raises(ValueError, match="`correlation` must be in"):
        spread_of_one([np.zeros(2)] * 2, 1.5)


def draw_runs(random, shape, num_samples, shift):
    """Return the scores of two runs whose questions are differently hard, the second better by `shift` in the mean."""
    ability = random.uniform(0.2, 0.6, size=shape)
    gain = random.uniform(shift - 0.2, shift + 0.2, size=shape)
    first = random.binomial(num_samples, ability)
    return first / num_samples, random.binomial(num_samples, np.clip(ability + gain, 0, 1)) / num_samples


@pytest.mark.parametrize("num_samples", [1, 4])
def test_so_many_questions_find_the_difference_as_often_as_promised(num_samples):
    random = np.random.default_rng(num_samples)
    # ability a in 0.2..0.6: E[a(1 - a)] = 0.4 - 0.16 - 0.4^2/12; with gain g of mean 0.1, -0.1..0.3, the same of a + g
    spread_of_uniform = 0.4**2 / 12
    within = 0.4 * 0.6 - spread_of_uniform, 0.5 * 0.5 - 2 * spread_of_uniform
    spread = Spread(between=spread_of_uniform, within=within)
    number = questions_needed(spread, 0.1, num_samples=num_samples)
    first, second = draw_runs(random, (1000, number), num_samples, 0.1)
    differences = second - first
    z = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / number**0.5)
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.03)


def test_a_pilot_finds_the_true_spread():
    random = np.random.default_rng(0)
    ability, gain = random.uniform(0.2, 0.6, size=(2, 2000, 1))
    values = list(random.binomial(1, ability, size=(2000, 5)).astype(float))
    others = list(random.binomial(1, np.clip(ability + (gain - 0.3), 0, 1), size=(2000, 5)).astype(float))
    found = spread_of_pair(values, others)
    assert found.between == pytest.approx(0.4**2 / 12, abs=0.006)
    assert found.within[0] == pytest.approx(0.4 * 0.6 - 0.4**2 / 12, abs=0.006)
