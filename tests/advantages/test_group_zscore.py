import math
import statistics

import pytest
import torch

from aepo_lightning.advantages.group_zscore import GroupZScore
from aepo_lightning.contracts.objective import AdvantageEstimator


def make_rewards(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def test_zscore_by_hand():
    # Mean 2; squared deviations 4 + 0 + 4 = 8 over n - 1 = 2 give std 2.
    advantages = GroupZScore(epsilon=1e-12)(make_rewards(0.0, 2.0, 4.0))
    torch.testing.assert_close(advantages, make_rewards(-1.0, 0.0, 1.0), rtol=1e-11, atol=1e-11)


def test_without_std_rewards_are_only_centered():
    assert GroupZScore(normalize_by_std=False)(make_rewards(0.0, 2.0, 7.0)).tolist() == [-3.0, -1.0, 4.0]


def test_equals_the_standard_library():
    rewards = [0.3, -1.0, 1.1, 0.0, 0.7]
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    expected = make_rewards(*((r - mean) / (std + 1e-6) for r in rewards))
    torch.testing.assert_close(GroupZScore()(make_rewards(*rewards)), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("reward", [0.1, -1.0, 1e3 / 7])
@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_is_exactly_zero_when_all_rewards_are_equal(size, reward, normalize_by_std):
    rewards = make_rewards(*[reward] * size, dtype=torch.float32)
    assert GroupZScore(normalize_by_std=normalize_by_std)(rewards).tolist() == [0.0] * size


def test_mean_is_zero_and_std_is_one():
    advantages = GroupZScore(epsilon=1e-15)(torch.randn(16, dtype=torch.float64))
    assert advantages.mean().item() == pytest.approx(0.0, abs=1e-14)
    assert advantages.std().item() == pytest.approx(1.0, rel=1e-13)


def test_order_of_the_group_is_kept():
    rewards = make_rewards(1.0, 0.0, 0.2, 0.9)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(GroupZScore()(rewards[order]), GroupZScore()(rewards)[order])


def test_nan_is_not_hidden():
    assert GroupZScore()(make_rewards(math.nan, 1.0)).isnan().all()


def test_refuses_an_empty_group():
    with pytest.raises(ValueError, match="`rewards` must have at least one entry, but got none"):
        GroupZScore()(make_rewards())


def test_refuses_epsilon_zero():
    with pytest.raises(ValueError, match=r"`epsilon` must be positive, but got 0.0"):
        GroupZScore(epsilon=0.0)


def test_satisfies_the_protocol():
    assert isinstance(GroupZScore(), AdvantageEstimator)


def weighted(rewards, weights, roots, **options):
    return GroupZScore(**options)(make_rewards(*rewards), weights=make_rewards(*weights), roots=roots)


def test_weighted_zscore_by_hand():
    # Chains of value 0, 2 (as 1 and 3, half each) and 4: mean 2. Variance 3 / 2 * (4 + (1 + 1) / 2 + 4) / 3 = 4.5.
    found = weighted((0.0, 1.0, 3.0, 4.0), (4 / 3, 2 / 3, 2 / 3, 4 / 3), (0, 1, 1, 2), epsilon=1e-12)
    torch.testing.assert_close(found, make_rewards(-2, -1, 1, 2) / math.sqrt(4.5), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("normalize_by_std", [True, False])
def test_a_trajectory_that_is_there_twice_with_half_the_weight_counts_as_once(normalize_by_std):
    options = {"normalize_by_std": normalize_by_std}
    plain = GroupZScore(**options)(make_rewards(0.3, 1.0, -0.2))
    alike = weighted((0.3, 1.0, -0.2), (1, 1, 1), (0, 1, 2), **options)
    torch.testing.assert_close(alike, plain, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        GroupZScore(**options)(make_rewards(0.3, 1.0, -0.2), weights=make_rewards(1, 1, 1)), plain
    )
    found = weighted((0.3, 1.0, 1.0, -0.2), (4 / 3, 2 / 3, 2 / 3, 4 / 3), (0, 1, 1, 2), **options)
    torch.testing.assert_close(found[[0, 1, 3]], plain, rtol=1e-12, atol=1e-12)
    assert found[1] == found[2]


def test_weights_of_zero_and_a_single_chain_have_advantages():
    assert weighted((1.0, 2.0), (0, 0), (0, 1)).tolist() == [0.0, 0.0]
    assert weighted((3.0,), (1,), (0,)).tolist() == [0.0]
    assert weighted((0.0, 2.0), (1, 1), (0, 0)).tolist() == pytest.approx([-1.0, 1.0], rel=1e-5)
    assert weighted((0.1, 0.1, 0.1), (0.5, 0.5, 2), (0, 0, 1)).tolist() == [0.0] * 3
