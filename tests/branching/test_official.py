import math
import random

import pytest

from aepo_lightning.branching import OfficialEntropyBalanced
from aepo_lightning.contracts.branching import BranchContext, BranchPolicy
from aepo_lightning.errors import ConfigError

NUM_DRAWS = 4_000


def make_context(change=0.0, steps=0, uniform=0.5):
    return BranchContext(entropy=1.0 + change, initial_entropy=1.0, consecutive_branches=steps, uniform=uniform)


def frequency(policy, uniforms, **context):
    return sum(policy.num_branches(make_context(uniform=u, **context)) for u in uniforms) / len(uniforms)


def closed_form(change, steps, gamma=0.2, tau=0.5):
    """P = clip(1 - tau / (1 - 0.05 l) + gamma dH, 0, 1), for l < 20."""
    return min(max(1 - tau / (1 - 0.05 * steps) + gamma * change, 0.0), 1.0)


def test_is_a_branch_policy():
    assert isinstance(OfficialEntropyBalanced(), BranchPolicy)


@pytest.mark.parametrize(
    ("change", "steps", "uniform", "expected"),
    [
        # (0.6 + 0.2 * 0.5) * (1 - 0.05 * 4) = 0.7 * 0.8 = 0.56
        (0.5, 4, 0.6, 0.56),
        # 0.9 + 0.2 * 4 = 1.7, clipped to 1
        (4.0, 0, 0.9, 1.0),
        # 0.1 - 0.2 * 2 = -0.3, clipped to 0
        (-2.0, 0, 0.1, 0.0),
    ],
)
def test_score_equals_hand_worked_numbers(change, steps, uniform, expected):
    score = OfficialEntropyBalanced().score(make_context(change=change, steps=steps, uniform=uniform))
    assert score == pytest.approx(expected, abs=1e-12)


TABLE = [(0, 0.500), (1, 0.474), (2, 0.444), (3, 0.412), (5, 0.333), (8, 0.167), (9, 0.091), (10, 0.0), (15, 0.0)]


# A binomial frequency of n draws has a standard deviation of at most sqrt(0.25 / 4000) = 0.0079; five of them.
@pytest.mark.parametrize(("steps", "probability"), TABLE)
def test_branches_with_the_tabulated_frequency(steps, probability):
    generator = random.Random(f"official/{steps}")
    uniforms = [generator.random() for _ in range(NUM_DRAWS)]
    assert frequency(OfficialEntropyBalanced(), uniforms, steps=steps) == pytest.approx(probability, abs=5 * 0.0079)


# The table is rounded to three digits and an even grid of n uniforms counts to one grid cell.
@pytest.mark.parametrize(("steps", "probability"), TABLE)
def test_branches_for_exactly_that_share_of_the_uniforms(steps, probability):
    grid = [(i + 0.5) / NUM_DRAWS for i in range(NUM_DRAWS)]
    found = frequency(OfficialEntropyBalanced(), grid, steps=steps)
    assert found == pytest.approx(probability, abs=5e-4 + 1 / NUM_DRAWS)


@pytest.mark.parametrize("steps", [0, 2, 8, 12])
@pytest.mark.parametrize("change", [-3.0, -0.5, 0.5, 1.5])
def test_share_of_the_uniforms_is_the_closed_form(change, steps):
    grid = [(i + 0.5) / NUM_DRAWS for i in range(NUM_DRAWS)]
    found = frequency(OfficialEntropyBalanced(), grid, change=change, steps=steps)
    assert found == pytest.approx(closed_form(change, steps), abs=1.5 / NUM_DRAWS)


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_score_does_not_fall_with_the_entropy_change(steps):
    scores = [OfficialEntropyBalanced().score(make_context(change=i / 10, steps=steps)) for i in range(-50, 51)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


@pytest.mark.parametrize("change", [-1.0, 0.0, 2.0])
def test_score_does_not_rise_with_consecutive_branches(change):
    scores = [OfficialEntropyBalanced().score(make_context(change=change, steps=steps)) for steps in range(40)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


@pytest.mark.parametrize("steps", [20, 100])
def test_never_branches_once_the_penalty_is_exhausted(steps):
    assert OfficialEntropyBalanced().num_branches(make_context(change=100.0, steps=steps, uniform=0.99)) == 0


def test_a_score_equal_to_the_threshold_branches():
    assert OfficialEntropyBalanced(gamma=0.0).num_branches(make_context(uniform=0.5)) == 1


def test_opens_branch_width_siblings():
    assert OfficialEntropyBalanced(branch_width=3).num_branches(make_context(uniform=0.9)) == 3


def test_with_penalty_changes_the_penalty_alone():
    policy = OfficialEntropyBalanced(gamma=0.4, tau=0.6, branch_width=2)
    changed = policy.with_penalty(0.2)
    assert changed == OfficialEntropyBalanced(gamma=0.4, tau=0.6, branch_width=2, penalty_per_step=0.2)
    assert policy.penalty_per_step == 0.05


def test_refuses_a_threshold_that_is_no_probability():
    with pytest.raises(ConfigError, match=r"`tau` must be in \[0, 1\], but got 1.5"):
        OfficialEntropyBalanced(tau=1.5)


def test_refuses_an_entropy_that_is_not_finite():
    with pytest.raises(ValueError, match="must be finite"):
        OfficialEntropyBalanced().num_branches(make_context(change=math.nan))
