import pytest

from aepo_lightning.branching.change import check_settings, entropy_change, penalty_factor
from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.errors import ConfigError

NAN, INF = float("nan"), float("inf")


def make_context(entropy, initial_entropy):
    return BranchContext(entropy=entropy, initial_entropy=initial_entropy, consecutive_branches=0, uniform=0.5)


def test_change_is_the_entropy_now_minus_the_entropy_at_the_start():
    assert entropy_change(make_context(1.75, 0.5)) == 1.25


@pytest.mark.parametrize(("entropy", "initial_entropy"), [(NAN, 0.0), (0.0, NAN), (INF, 0.0), (INF, INF)])
def test_change_refuses_entropies_that_are_not_finite(entropy, initial_entropy):
    with pytest.raises(ValueError, match="must be finite"):
        entropy_change(make_context(entropy, initial_entropy))


# 1 - 0.05 * 3 = 0.85; 0.05 * 20 = 1 exhausts it; 0.05 * 30 = 1.5 is capped at 1
@pytest.mark.parametrize(("steps", "expected"), [(0, 1.0), (3, 0.85), (20, 0.0), (30, 0.0)])
def test_penalty_falls_linearly_to_zero_and_stays_there(steps, expected):
    assert penalty_factor(0.05, steps) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("gamma", -0.1),
        ("gamma", NAN),
        ("tau", -0.01),
        ("tau", 1.01),
        ("tau", NAN),
        ("penalty_per_step", -0.05),
        ("penalty_per_step", INF),
        ("branch_width", 0),
    ],
)
def test_settings_without_meaning_are_refused_by_name(setting, value):
    settings = {"gamma": 0.2, "tau": 0.5, "penalty_per_step": 0.05, "branch_width": 1, setting: value}
    with pytest.raises(ConfigError, match=f"`{setting}` must be"):
        check_settings(**settings)
