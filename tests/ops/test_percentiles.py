import numpy as np
import pytest
import torch

from aepo_lightning.ops.percentiles import MOST_KEPT, percentiles, sorted_sample


def test_few_numbers_by_hand():
    sample = sorted_sample(torch.tensor([4.0, 1.0, 3.0, 2.0]))
    assert sample.kept == (1.0, 2.0, 3.0, 4.0)
    # Places (i - 0.5) / 4: the number 1 is percentile 12.5, 2 is 37.5, 3 is 62.5, 4 is 87.5.
    assert percentiles([sample], (0, 12.5, 25, 50, 87.5, 100)) == pytest.approx([1.0, 1.0, 1.5, 2.5, 4.0, 4.0])


def test_samples_of_several_ranks_are_one():
    values = torch.randn(97, generator=torch.Generator().manual_seed(0))
    parts = [sorted_sample(part) for part in (values[:5], values[5:40], values[40:])]
    expected = np.percentile(values.numpy(), (1, 10, 90, 99), method="hazen")
    assert percentiles(parts, (1, 10, 90, 99)) == pytest.approx(expected, rel=1e-6)


def test_many_numbers_are_thinned_and_each_stands_for_as_many():
    values = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    parts = [sorted_sample(values[:300]), sorted_sample(values[300:])]
    assert [len(part.kept) for part in parts] == [300, MOST_KEPT]
    found = percentiles(parts, (1, 10, 50, 90, 99))
    assert found == pytest.approx(np.percentile(values.numpy(), (1, 10, 50, 90, 99)), abs=1e-3)


def test_one_number_is_every_percentile():
    assert percentiles([sorted_sample(torch.tensor([2.0])), sorted_sample(torch.tensor([]))], (1, 99)) == [2.0, 2.0]
