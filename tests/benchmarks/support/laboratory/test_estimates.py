"""Estimates of direction and bias: right on average where the truth is known."""

import math

import pytest
import torch

from benchmarks.support.laboratory.estimates import describe, jackknife, mean_of
from benchmarks.support.laboratory.updates import Updates

TARGET = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)


def noisy(mean, noise, seed, count=100):
    generator = torch.Generator().manual_seed(seed)
    rows = mean + noise * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    ones = torch.ones(count, dtype=torch.float64)
    return Updates(gradients=rows, num_tokens=10 * ones, num_calls=4 * ones, values=0.5 * ones)


def figures(mean, noise=2.0, seed=0):
    return describe([noisy(mean, noise, seed)], [TARGET], [0.25])


def test_exact_updates_have_their_cosine_and_bias_by_hand():
    # Along the target 10 of length 5, so c = 2; across it a vector of length 5: |5|^2 / |10|^2 = 1/4.
    found = figures(2 * TARGET + torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64), noise=0.0)
    assert found.squared_bias.value == pytest.approx(0.25)
    assert found.bias == pytest.approx(0.5)
    assert found.cosine.value == pytest.approx(1 / math.sqrt(1.25))
    assert found.scales[0].value == pytest.approx(2.0)
    assert found.value_biases[0].value == pytest.approx(0.25)


def test_noise_alone_is_no_bias_on_average():
    found = [figures(TARGET, seed=seed).squared_bias for seed in range(25)]
    mean = sum(each.value for each in found) / len(found)
    spread = (sum((each.value - mean) ** 2 for each in found) / (len(found) - 1)) ** 0.5
    assert abs(mean) <= 4 * spread / math.sqrt(len(found))
    # The jackknife's error is that of one estimate.
    assert sum(each.error for each in found) / len(found) == pytest.approx(spread, rel=0.5)


def test_tokens_per_unit_is_noise_over_signal_in_tokens():
    # Variance 3 * 2^2 over the square of the signal, 25, at 10 tokens a step; 4 calls a step.
    found = figures(TARGET)
    assert found.tokens_per_unit == pytest.approx(10 * 12 / 25, rel=0.25)
    assert found.calls_per_unit == pytest.approx(found.tokens_per_unit * 0.4)


def test_a_scale_for_each_quest_is_a_bias_between_quests_only():
    first, second = torch.eye(2, 3, dtype=torch.float64)
    updates = [noisy(first, 0.0, 0), noisy(3 * second, 0.0, 0)]
    found = describe(updates, [first, second], [0.0, 0.0])
    # The mean is (1, 3) / 2 along (1, 1) / 2: c = 2, across (-1, 1) / 2, so the square is 1 / 4.
    assert found.squared_bias.value == pytest.approx(0.25)
    assert found.squared_bias_within.value == pytest.approx(0.0)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = jackknife(values, lambda rows: float(rows.mean()))
    assert found.value == pytest.approx(mean_of(values).value)
    assert found.error == pytest.approx(mean_of(values).error, rel=0.4)
