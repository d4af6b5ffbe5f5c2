import math

import pytest

from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.contracts.branching import BudgetAllocator
from aepo_lightning.errors import ConfigError

OFFICIAL = PreMonitoring(rounding="floor_plus_one", includes_root_turn=True)


def entropy_regularised_gain(share, root_entropy, tool_entropy, beta):
    """p * H_root + (1 - p) * H_tool + H_b(p) / beta, with H_b in nats."""
    binary_entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    return share * root_entropy + (1 - share) * tool_entropy + binary_entropy / beta


def best_share(root_entropy, tool_entropy, beta):
    """Ternary search for the maximiser of a strictly concave function on (0, 1)."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(300):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        gains = [entropy_regularised_gain(p, root_entropy, tool_entropy, beta) for p in (left, right)]
        low, high = (left, high) if gains[0] < gains[1] else (low, right)
    return (low + high) / 2


def test_is_a_budget_allocator_that_needs_a_probe():
    assert isinstance(PreMonitoring(), BudgetAllocator)
    assert PreMonitoring().needs_probe


@pytest.mark.parametrize(
    ("total", "beta", "root_entropy", "tool_entropies", "expected"),
    [
        # dH = 2 - (0.5 + 1.5) / 2 = 1; sigmoid(0.5) = 0.622459; 12 * 0.622459 = 7.4695 -> 7
        (12, 0.5, 2.0, [0.5, 1.5], 7),
        # dH = 1 - 3 = -2; sigmoid(-1) = 0.268941; 16 * 0.268941 = 4.3031 -> 4
        (16, 0.5, 1.0, [3.0], 4),
        # dH = 0; sigmoid(0) = 1/2; 5 * 1/2 = 2.5 -> 3, a half rounds up
        (5, 0.5, 1.0, [1.0], 3),
    ],
    ids=["root_more_uncertain", "tools_more_uncertain", "half_rounds_up"],
)
def test_equals_hand_worked_numbers(total, beta, root_entropy, tool_entropies, expected):
    assert PreMonitoring(beta=beta).global_budget(total, root_entropy, tool_entropies) == expected


# A share of one part in a million is resolved by a budget of a million. The optimum of a flat-topped function is only
# located to the square root of machine precision, 1.5e-8 relative, so the two agree to one part of the budget or so.
@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize(("root_entropy", "tool_entropy"), [(1.0, 1.0), (2.0, 0.5), (0.1, 1.7), (3.0, 2.2)])
def test_maximises_the_entropy_regularised_information_gain(root_entropy, tool_entropy, beta):
    total = 1_000_000
    m = PreMonitoring(beta=beta).global_budget(total, root_entropy, [tool_entropy])
    assert m / total == pytest.approx(best_share(root_entropy, tool_entropy, beta), abs=2e-6)


@pytest.mark.parametrize("total", [2, 8, 12, 16])
@pytest.mark.parametrize("beta", [0.0, 0.5, 50.0])
def test_equal_entropies_halve_the_budget(total, beta):
    assert PreMonitoring(beta=beta).global_budget(total, 1.3, [1.3, 1.3]) == total // 2


@pytest.mark.parametrize(("total", "expected"), [(16, 9), (12, 7), (7, 4), (1, 1)])
def test_official_equal_entropies_give_half_plus_one(total, expected):
    assert OFFICIAL.global_budget(total, 1.3, [1.3]) == expected


def test_beta_zero_halves_the_budget_whatever_the_entropies():
    assert PreMonitoring(beta=0.0).global_budget(16, 100.0, [0.0]) == 8


@pytest.mark.parametrize("budget", [PreMonitoring(), OFFICIAL], ids=["paper", "official"])
def test_is_monotone_in_the_entropy_difference(budget):
    rising_root = [budget.global_budget(16, h / 10, [2.0, 2.0]) for h in range(100)]
    rising_tools = [budget.global_budget(16, 2.0, [h / 10, h / 10]) for h in range(100)]
    assert rising_root == sorted(rising_root)
    assert rising_tools == sorted(rising_tools, reverse=True)
    assert len(set(rising_root)) > 4


@pytest.mark.parametrize("budget", [PreMonitoring(), OFFICIAL], ids=["paper", "official"])
@pytest.mark.parametrize("total", [1, 2, 16])
@pytest.mark.parametrize("difference", [-1e6, -50.0, 50.0, 1e6])
def test_stays_between_one_and_the_budget(budget, total, difference):
    # Twice the difference, so that the official average (root turn included) leaves at least the difference.
    m = budget.global_budget(total, 0.0, [-2 * difference])
    assert m == (total if difference > 0 else 1)


# k * sigmoid(+-0.5) + 1, floored: 16 * 0.6225 = 9.96 -> 10, 16 * 0.3775 = 6.04 -> 7,
#                                  12 * 0.6225 = 7.47 -> 8,  12 * 0.3775 = 4.53 -> 5
@pytest.mark.parametrize(("total", "lowest", "highest"), [(16, 7, 10), (12, 5, 8)])
def test_official_range_for_differences_up_to_one(total, lowest, highest):
    # One tool call: the average with the root turn is (H_root + H_tool) / 2, so H_tool = H_root - 2 dH.
    values = {OFFICIAL.global_budget(total, 5.0, [5.0 - 2 * step / 100]) for step in range(-100, 101)}
    assert values == set(range(lowest, highest + 1))


@pytest.mark.parametrize("num_calls", [1, 2, 5])
def test_including_the_root_turn_shrinks_the_difference_by_n_over_n_plus_one(num_calls):
    with_root = PreMonitoring(beta=0.5, includes_root_turn=True)
    shrunk = PreMonitoring(beta=0.5 * num_calls / (num_calls + 1))
    for tool_entropy in (0.0, 0.7, 4.0):
        arguments = (10_000, 2.0, [tool_entropy] * num_calls)
        assert abs(with_root.global_budget(*arguments) - shrunk.global_budget(*arguments)) <= 1


def test_only_the_mean_of_the_tool_entropies_counts():
    budget = PreMonitoring()
    assert budget.global_budget(1000, 1.0, [0.0, 4.0]) == budget.global_budget(1000, 1.0, [2.0])


def test_a_probe_without_tool_calls_leaves_nothing_to_branch_at():
    assert PreMonitoring().global_budget(12, 1.0, []) == 12


def test_a_probe_without_tool_calls_compares_the_root_turn_with_itself_if_included():
    assert OFFICIAL.global_budget(12, 1.0, []) == 7


@pytest.mark.parametrize("total", [0, -3])
def test_refuses_an_empty_budget(total):
    with pytest.raises(ValueError, match=f"`total` must be at least 1, but got {total}"):
        PreMonitoring().global_budget(total, 1.0, [1.0])


@pytest.mark.parametrize(
    ("root_entropy", "tool_entropies"), [(math.nan, [1.0]), (1.0, [math.inf]), (1.0, [1.0, math.nan])]
)
def test_refuses_entropies_that_are_not_finite(root_entropy, tool_entropies):
    with pytest.raises(ValueError, match="Entropies must be finite"):
        PreMonitoring().global_budget(8, root_entropy, tool_entropies)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, "`beta` must be finite and at least 0, but got -0.1"),
        ({"beta": math.inf}, "`beta` must be finite"),
    ],
    ids=["negative", "infinite"],
)
def test_refuses_settings_without_meaning(settings, message):
    with pytest.raises(ConfigError, match=message):
        PreMonitoring(**settings)


@pytest.mark.parametrize(("total", "expected"), [(8, 2), (2, 2), (1, 1)])
def test_m_is_at_least_what_is_asked_for_as_far_as_the_budget_goes(total, expected):
    # sigmoid(10 * (0 - 5)) is 0 up to rounding: everything would go to branches.
    assert PreMonitoring(beta=10.0, min_global_budget=2).global_budget(total, 0.0, [5.0]) == expected
    assert PreMonitoring(beta=10.0).global_budget(total, 0.0, [5.0]) == 1
    assert PreMonitoring(beta=10.0, min_global_budget=2).global_budget(total, 5.0, [0.0]) == total


def test_a_least_m_below_one_is_refused():
    with pytest.raises(ConfigError, match="`min_global_budget` must be at least 1, but got 0"):
        PreMonitoring(min_global_budget=0)
