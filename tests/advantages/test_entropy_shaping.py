import math

import pytest
import torch

from aepo_lightning.advantages.entropy_shaping import EntropyShaping
from aepo_lightning.advantages.entropy_statistics import EntropyStatistics


def make_batch(num_rows=6, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(num_rows, width, dtype=torch.float64, generator=generator) * 3
    mask = torch.rand(num_rows, width, generator=generator) < 0.7
    advantages = torch.randn(num_rows, 1, dtype=torch.float64, generator=generator).expand(-1, width)
    return advantages, entropy, mask


def rows_of(entropy, mask):
    return [EntropyStatistics.from_tokens(entropy[i : i + 1], mask[i : i + 1]) for i in range(len(entropy))]


def test_shaping_by_hand():
    # Mean 1 and std 0.5: z = (-2, 0, 2), factors 1 + 0.2 z = (0.6, 1, 1.4), A = -2.
    entropy = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    # Count 3, total 3: variance (t - 3) / 2 = 0.25 for a sum of squares t = 3.5.
    collected = EntropyStatistics(count=3.0, total=3.0, total_squares=3.5)
    shaped = EntropyShaping().shape(
        torch.full((1, 3), -2.0).double(), entropy, torch.ones(1, 3, dtype=torch.bool), collected
    )
    torch.testing.assert_close(shaped, torch.tensor([[-1.2, -2.0, -2.8]]).double())


def test_standardised_entropy_has_mean_zero_and_std_one_over_its_set():
    _, entropy, mask = make_batch()
    # A = 1 and weight 1 give 1 + z without the guard.
    shaping = EntropyShaping(weight=1.0, guard=False)
    shaped = shaping.shape(torch.ones(6, 9).double(), entropy, mask, EntropyStatistics.from_tokens(entropy, mask))
    z = shaped[mask] - 1
    assert z.mean().item() == pytest.approx(0.0, abs=1e-13)
    assert z.std().item() == pytest.approx(1.0, rel=1e-12)


def test_equals_a_loop_over_tokens():
    advantages, entropy, mask = make_batch()
    collected = EntropyStatistics.from_tokens(entropy, mask)
    shaped = EntropyShaping(weight=0.9).shape(advantages, entropy, mask, collected)
    mean, std = entropy[mask].mean().item(), entropy[mask].std().item()
    for i in range(6):
        for t in range(9):
            factor = max(0.0, 1 + 0.9 * (entropy[i, t].item() - mean) / std)
            expected = advantages[i, t].item() * factor if mask[i, t] else 0.0
            assert shaped[i, t].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_weight_zero_is_the_plain_advantage():
    advantages, entropy, mask = make_batch()
    shaped = EntropyShaping(weight=0.0).shape(advantages, entropy, mask, EntropyStatistics.from_tokens(entropy, mask))
    torch.testing.assert_close(shaped, torch.where(mask, advantages, 0.0), rtol=0, atol=0)


@pytest.mark.parametrize(("guard", "expected"), [(True, 0.0), (False, 3.0)])
def test_guard_keeps_the_sign_of_the_advantage(guard, expected):
    # z = (0 - 10) / 1 = -10: factor 1 - 0.2 * 10 = -1, so A = -3 would become 3.
    collected = EntropyStatistics(count=2.0, total=20.0, total_squares=201.0)
    mask = torch.ones(1, 1, dtype=torch.bool)
    shaped = EntropyShaping(guard=guard).shape(torch.tensor([[-3.0]]), torch.zeros(1, 1), mask, collected)
    assert shaped.item() == pytest.approx(expected)


@pytest.mark.parametrize("outside", [math.nan, math.inf])
def test_what_is_outside_the_mask_is_zero_and_changes_nothing(outside):
    advantages, entropy, mask = make_batch()
    dirty = entropy.masked_fill(~mask, outside)
    expected = EntropyShaping().shape(advantages, entropy, mask, EntropyStatistics.from_tokens(entropy, mask))
    shaped = EntropyShaping().shape(advantages, dirty, mask, EntropyStatistics.from_tokens(dirty, mask))
    torch.testing.assert_close(shaped, expected, rtol=0, atol=0)
    assert shaped[~mask].eq(0).all()


def test_no_gradient_flows_into_the_entropy():
    advantages, entropy, mask = make_batch()
    entropy.requires_grad_()
    shaped = EntropyShaping().shape(advantages, entropy, mask, EntropyStatistics.from_tokens(entropy, mask))
    assert not shaped.requires_grad


def test_group_scope_pools_each_question_and_minibatch_scope_pools_all():
    _, entropy, mask = make_batch()
    groups = torch.tensor([7, 3, 7, 3, 3, 9])
    rows = rows_of(entropy, mask)
    pooled = EntropyShaping(scope="group").pool(rows, groups)
    for row, group in enumerate(groups.tolist()):
        own = EntropyStatistics.from_tokens(entropy[groups == group], mask[groups == group])
        assert pooled[row].count == own.count
        assert pooled[row].mean == pytest.approx(own.mean, rel=1e-14)
        assert pooled[row].std == pytest.approx(own.std, rel=1e-12)
    everything = EntropyShaping(scope="minibatch").pool(rows, groups)
    assert len(everything) == 6
    assert len(set(everything)) == 1
    assert everything[0].std == pytest.approx(entropy[mask].std().item(), rel=1e-12)


def test_one_entry_per_row_equals_shaping_each_group_alone():
    advantages, entropy, mask = make_batch()
    groups = torch.tensor([0, 1, 0, 1, 1, 0])
    shaping = EntropyShaping()
    together = shaping.shape(advantages, entropy, mask, shaping.pool(rows_of(entropy, mask), groups))
    for group in (0, 1):
        rows = groups == group
        own = EntropyStatistics.from_tokens(entropy[rows], mask[rows])
        alone = shaping.shape(advantages[rows], entropy[rows], mask[rows], own)
        torch.testing.assert_close(together[rows], alone, rtol=1e-12, atol=1e-12)


def test_any_split_into_micro_batches_gives_the_same_advantages():
    advantages, entropy, mask = make_batch()
    shaping = EntropyShaping(scope="minibatch")
    pooled = shaping.pool(rows_of(entropy, mask), torch.zeros(6, dtype=torch.int64))
    whole = shaping.shape(advantages, entropy, mask, pooled)
    parts = [shaping.shape(advantages[p], entropy[p], mask[p], pooled[p]) for p in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_refuses_statistics_that_do_not_match_the_rows():
    advantages, entropy, mask = make_batch()
    with pytest.raises(ValueError, match="`statistics` must have 6 entries, one per row, but got 1"):
        EntropyShaping().shape(advantages, entropy, mask, [EntropyStatistics()])
    with pytest.raises(ValueError, match="`row_statistics` must have one entry per trajectory, but got 1 for 2"):
        EntropyShaping().pool([EntropyStatistics()], torch.tensor([0, 0]))


def test_refuses_a_negative_weight():
    with pytest.raises(ValueError, match=r"`weight` must be 0 \(off\) or positive, but got -0.1"):
        EntropyShaping(weight=-0.1)
