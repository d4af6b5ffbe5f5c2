import math
import statistics

import pytest
import torch

from aepo_lightning.advantages.entropy_statistics import EntropyStatistics


def make_tokens(num_rows=6, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    entropies = torch.rand(num_rows, width, generator=generator) * 3
    return entropies, torch.rand(num_rows, width, generator=generator) < 0.7


def test_sums_by_hand():
    # Entropies 1, 2 and 4: mean 7/3, squares 1 + 4 + 16 = 21, variance (21 - 49/3) / 2 = 7/3.
    entropies = torch.tensor([[1.0, 2.0, math.nan], [4.0, 9.0, math.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    collected = EntropyStatistics.from_tokens(entropies, mask)
    assert collected == EntropyStatistics(count=3.0, total=7.0, total_squares=21.0)
    assert collected.mean == pytest.approx(7 / 3)
    assert collected.std == pytest.approx(math.sqrt(7 / 3))


def test_equals_the_standard_library():
    entropies, mask = make_tokens()
    collected = EntropyStatistics.from_tokens(entropies, mask)
    values = entropies[mask].tolist()
    assert collected.mean == pytest.approx(statistics.mean(values), rel=1e-13)
    # Sums of squares lose a few digits to cancellation: 1e-16 times mean^2 / variance.
    assert collected.std == pytest.approx(statistics.stdev(values), rel=1e-12)


def test_any_split_adds_up_to_the_whole():
    entropies, mask = make_tokens()
    whole = EntropyStatistics.from_tokens(entropies, mask)
    for parts in ([[0, 1, 2], [3, 4, 5]], [[5], [0, 3], [1, 2, 4]]):
        merged = sum((EntropyStatistics.from_tokens(entropies[p], mask[p]) for p in parts), EntropyStatistics())
        assert merged.count == whole.count
        assert merged.mean == pytest.approx(whole.mean, rel=1e-14)
        assert merged.std == pytest.approx(whole.std, rel=1e-12)


def test_std_is_one_without_spread():
    nothing = EntropyStatistics()
    assert (nothing.mean, nothing.std) == (0.0, 1.0)
    single = EntropyStatistics.from_tokens(torch.tensor([[0.7]]), torch.tensor([[True]]))
    assert (single.mean, single.std) == (pytest.approx(0.7), 1.0)
    zeros = EntropyStatistics.from_tokens(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
    assert (zeros.mean, zeros.std) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 2.7])
@pytest.mark.parametrize("merges", [1, 300])
def test_std_is_one_for_equal_entropies_in_spite_of_rounding(value, merges):
    part = EntropyStatistics.from_tokens(torch.full((7, 11), value), torch.ones(7, 11, dtype=torch.bool))
    assert sum([part] * merges, EntropyStatistics()).std == 1.0


def test_a_small_spread_is_not_taken_for_rounding():
    entropies = torch.tensor([[1.0, 1.0 + 1e-4]], dtype=torch.float64)
    collected = EntropyStatistics.from_tokens(entropies, torch.ones(1, 2, dtype=torch.bool))
    # Two values a distance d apart have std d / sqrt 2; cancellation leaves 1e-16 / 1e-8 relative.
    assert collected.std == pytest.approx(1e-4 / math.sqrt(2), rel=1e-7)


def test_statistics_are_detached_and_16_bit_entropies_are_summed_in_float64():
    entropies = torch.full((1, 4096), 0.3, dtype=torch.bfloat16, requires_grad=True)
    collected = EntropyStatistics.from_tokens(entropies, torch.ones(1, 4096, dtype=torch.bool))
    assert collected.total == pytest.approx(4096 * float(entropies[0, 0].detach()), rel=1e-15)
