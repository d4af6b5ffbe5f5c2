import itertools
import math
import random

import pytest

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.contracts.branching import BranchContext, BranchPolicy
from aepo_lightning.errors import ConfigError

NUM_DRAWS = 4_000


def make_context(change=0.0, steps=0, uniform=0.5):
    return BranchContext(entropy=1.0 + change, initial_entropy=1.0, consecutive_branches=steps, uniform=uniform)


def frequency(policy, uniforms, **context):
    return sum(policy.num_branches(make_context(uniform=u, **context)) for u in uniforms) / len(uniforms)


def test_is_a_branch_policy():
    assert isinstance(EntropyBalanced(), BranchPolicy)


@pytest.mark.parametrize(
    ("change", "steps", "expected"),
    [
        (0.0, 0, 0.5),
        # (0.5 + 0.2 * 0.5) * (1 - 0.05 * 2) = 0.6 * 0.9 = 0.54
        (0.5, 2, 0.54),
        # (0.5 - 0.2 * 1) * (1 - 0.05 * 4) = 0.3 * 0.8 = 0.24
        (-1.0, 4, 0.24),
        # (0.5 + 0.2 * 4) * 1 = 1.3, not clipped
        (4.0, 0, 1.3),
    ],
)
def test_score_equals_hand_worked_numbers(change, steps, expected):
    assert EntropyBalanced().score(make_context(change=change, steps=steps)) == pytest.approx(expected, abs=1e-12)


TABLE = [(0, 0.500), (1, 0.475), (2, 0.450), (3, 0.425), (5, 0.375), (8, 0.300), (9, 0.275), (10, 0.250)]


# A binomial frequency of n draws has a standard deviation of at most sqrt(0.25 / 4000) = 0.0079; five of them.
@pytest.mark.parametrize(("steps", "probability"), TABLE)
def test_branches_with_the_tabulated_frequency(steps, probability):
    generator = random.Random(f"entropy_balanced/{steps}")
    uniforms = [generator.random() for _ in range(NUM_DRAWS)]
    assert frequency(EntropyBalanced(), uniforms, steps=steps) == pytest.approx(probability, abs=5 * 0.0079)


# An even grid of n uniforms counts a probability to one grid cell, which tells this table from the official one.
@pytest.mark.parametrize(("steps", "probability"), TABLE)
def test_branches_for_exactly_that_share_of_the_uniforms(steps, probability):
    grid = [(i + 0.5) / NUM_DRAWS for i in range(NUM_DRAWS)]
    assert frequency(EntropyBalanced(), grid, steps=steps) == pytest.approx(probability, abs=1 / NUM_DRAWS)


@pytest.mark.parametrize("change", [-1.0, 0.0, 1.0, 100.0])
@pytest.mark.parametrize("steps", [20, 21, 1000])
@pytest.mark.parametrize("decision", ["bernoulli", "threshold"])
def test_never_branches_once_the_penalty_is_exhausted(change, steps, decision):
    context = make_context(change=change, steps=steps, uniform=0.0)
    assert EntropyBalanced(decision=decision, tau=0.0).num_branches(context) == 0


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_score_rises_with_the_entropy_change(steps):
    scores = [EntropyBalanced().score(make_context(change=i / 10, steps=steps)) for i in range(-50, 51)]
    assert all(low < high for low, high in itertools.pairwise(scores))


@pytest.mark.parametrize("change", [-1.0, 0.0, 2.0])
def test_score_does_not_rise_with_consecutive_branches(change):
    scores = [EntropyBalanced().score(make_context(change=change, steps=steps)) for steps in range(40)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1]


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_a_score_outside_the_unit_interval_is_certain(uniform):
    assert EntropyBalanced().num_branches(make_context(change=10.0, uniform=uniform)) == 1
    assert EntropyBalanced().num_branches(make_context(change=-10.0, uniform=uniform)) == 0


@pytest.mark.parametrize("uniform", [0.0, 0.99])
@pytest.mark.parametrize(("change", "expected"), [(-0.1, 0), (0.0, 0), (0.1, 1)])
def test_threshold_with_alpha_equal_tau_is_a_sign_test(change, uniform, expected):
    policy = EntropyBalanced(decision="threshold")
    assert policy.num_branches(make_context(change=change, uniform=uniform)) == expected


def test_threshold_demands_more_entropy_after_each_branch():
    # l = 2: (0.5 + 0.2 dH) * 0.9 > 0.5 needs dH > (0.5 / 0.9 - 0.5) / 0.2 = 0.27778
    policy = EntropyBalanced(decision="threshold")
    assert policy.num_branches(make_context(change=0.277, steps=2)) == 0
    assert policy.num_branches(make_context(change=0.278, steps=2)) == 1


def test_penalty_zero_forgets_consecutive_branches():
    policy = EntropyBalanced(penalty_per_step=0.0)
    assert {policy.score(make_context(change=0.3, steps=steps)) for steps in (0, 1, 50)} == {0.5 + 0.2 * 0.3}


def test_opens_branch_width_siblings():
    assert EntropyBalanced(branch_width=3).num_branches(make_context(uniform=0.0)) == 3


def test_with_penalty_changes_the_penalty_alone():
    policy = EntropyBalanced(alpha=0.4, decision="threshold", branch_width=2)
    changed = policy.with_penalty(0.2)
    assert changed == EntropyBalanced(alpha=0.4, decision="threshold", branch_width=2, penalty_per_step=0.2)
    assert policy.penalty_per_step == 0.05


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_refuses_an_alpha_that_is_no_probability(alpha):
    with pytest.raises(ConfigError, match=r"`alpha` must be in \[0, 1\]"):
        EntropyBalanced(alpha=alpha)


def test_refuses_a_negative_penalty():
    with pytest.raises(ConfigError, match="`penalty_per_step` must be finite and at least 0, but got -1"):
        EntropyBalanced().with_penalty(-1.0)


def test_refuses_an_entropy_that_is_not_finite():
    with pytest.raises(ValueError, match="must be finite"):
        EntropyBalanced().num_branches(make_context(change=math.nan))
