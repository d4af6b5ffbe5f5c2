import math

import pytest
import torch

from aepo_lightning.advantages import GroupZScore, LeaveOneOut, NoBaseline
from aepo_lightning.contracts.objective import AdvantageEstimator


def rewards(*values):
    return torch.tensor(values, dtype=torch.float64)


def reference(values, weights, roots):
    """Each reward less the weighted mean of those of other units, one by one."""
    found = []
    for index, value in enumerate(values):
        others = [other for other in range(len(values)) if roots[other] != roots[index]]
        total = sum(weights[other] for other in others)
        found.append(value - sum(weights[other] * values[other] for other in others) / total if total else 0.0)
    return found


def test_by_hand():
    # The others of 4 are 1 and 1, those of 1 are 1 and 4.
    assert LeaveOneOut()(rewards(1, 1, 4)).tolist() == [-1.5, -1.5, 3.0]


@pytest.mark.parametrize("unit", ["trajectory", "root"])
def test_equals_the_definition(unit):
    values, weights, roots = [0.3, -1.0, 1.1, 0.0, 0.7], [0.5, 0.5, 2.0, 1.0, 1.0], [0, 0, 1, 2, 2]
    units = list(range(5)) if unit == "trajectory" else roots
    estimator = LeaveOneOut(unit=unit)
    found = estimator(rewards(*values), weights=rewards(*weights), roots=roots)
    assert found.tolist() == pytest.approx(reference(values, weights, units), rel=1e-12)
    plain = estimator(rewards(*values), roots=roots)
    assert plain.tolist() == pytest.approx(reference(values, [1] * 5, units), rel=1e-12)


def test_is_the_distance_from_the_mean_of_all_times_a_factor():
    values = torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(LeaveOneOut()(values), 7 / 6 * GroupZScore(normalize_by_std=False)(values))


def test_two_copies_of_half_the_weight_count_as_one_chain():
    plain = LeaveOneOut(unit="root")(rewards(0.3, 1.0, -0.2))
    options = {"weights": rewards(4 / 3, 2 / 3, 2 / 3, 4 / 3), "roots": [0, 1, 1, 2]}
    found = LeaveOneOut(unit="root")(rewards(0.3, 1.0, 1.0, -0.2), **options)
    torch.testing.assert_close(found[[0, 1, 3]], plain)


def test_nothing_of_a_chain_is_in_its_own_baseline():
    values = rewards(0.3, 1.0, 0.5, -0.2).requires_grad_()
    found = LeaveOneOut(unit="root")(values, roots=[0, 1, 1, 2])
    (gradient,) = torch.autograd.grad(found[1], values)
    assert gradient.tolist() == [-0.5, 1.0, 0.0, -0.5]


@pytest.mark.parametrize("values", [(0.1,), (0.1, 0.1, 0.1)])
def test_is_exactly_zero_without_a_difference(values):
    assert LeaveOneOut()(rewards(*values)).tolist() == [0.0] * len(values)
    assert LeaveOneOut(unit="root")(rewards(0.1, 0.9), roots=[0, 0]).tolist() == [0.0, 0.0]


def test_refuses_an_empty_group_and_does_not_hide_nan():
    with pytest.raises(ValueError, match="`rewards` must have at least one entry, but got none"):
        LeaveOneOut()(rewards())
    assert LeaveOneOut()(rewards(math.nan, 1.0)).isnan().all()


def test_refuses_an_unknown_unit():
    unit = LeaveOneOut()
    object.__setattr__(unit, "unit", "tree")
    with pytest.raises(ValueError, match="`unit` must be 'trajectory' or 'root', but got 'tree'"):
        unit.__post_init__()


def test_without_a_baseline_rewards_stay_as_they_are():
    assert NoBaseline()(rewards(1, -2), weights=rewards(1, 1)).tolist() == [1.0, -2.0]
    assert isinstance(NoBaseline(), AdvantageEstimator)
    assert isinstance(LeaveOneOut(), AdvantageEstimator)
