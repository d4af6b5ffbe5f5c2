"""Statistics of few runs against slow references in plain Python."""

import itertools
import statistics as stdlib

import numpy as np
import pytest

from aepo_lightning.evaluation.statistics import sign_flip_p
from benchmarks.support.comparison.statistics import (
    interquartile_mean,
    paired_improvement,
    probability_of_improvement,
)


def slow_interquartile_mean(scores):
    ordered = sorted(scores)
    cut = int(0.25 * len(ordered))
    return stdlib.fmean(ordered[cut : len(ordered) - cut])


def random_scores(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def test_an_interquartile_mean_by_hand():
    # of 8 scores the lowest and highest 2 go: (3 + 4 + 5 + 6) / 4
    assert interquartile_mean(np.array([8.0, 1.0, 7.0, 3.0, 100.0, 4.0, 5.0, 6.0])) == (4 + 5 + 6 + 7) / 4
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0


@pytest.mark.parametrize("size", range(1, 14))
def test_interquartile_means_are_those_of_the_slow_reference(size):
    rows = random_scores((3, size), size)
    assert interquartile_mean(rows).tolist() == pytest.approx([slow_interquartile_mean(row) for row in rows])


def test_an_improvement_by_hand():
    # bed one: 2 > 1, 2 = 2, 0 < 1, 0 < 2 gives 1.5 of 4; bed two: 3 > 0 gives 1
    treated, control = [np.array([2.0, 0.0]), np.array([3.0])], [np.array([1.0, 2.0]), np.array([0.0])]
    assert probability_of_improvement(treated, control) == (1.5 / 4 + 1) / 2
    # by seed: 2 - 1 > 0, 0 - 2 < 0; 3 - 0 > 0
    assert paired_improvement([np.array([1.0, -2.0]), np.array([3.0])]) == (0.5 + 1) / 2
    assert paired_improvement([np.array([0.0])]) == 0.5


@pytest.mark.parametrize("size", [1, 5, 8])
def test_exact_p_values_are_those_of_all_signs(size):
    scores = random_scores(size, size) + 0.5
    observed = abs(slow_interquartile_mean(scores))
    found = [
        abs(slow_interquartile_mean([s * x for s, x in zip(signs, scores, strict=True)]))
        for signs in itertools.product((1, -1), repeat=size)
    ]
    assert sign_flip_p([scores], interquartile_mean) == sum(each >= observed - 1e-12 for each in found) / len(found)
