"""Statistics of few runs against slow references in plain Python."""

import itertools
import statistics as stdlib

import numpy as np
import pytest

from benchmarks.support.comparison.statistics import (
    FLIPS,
    Estimate,
    bootstrap,
    holm,
    interquartile_mean,
    mean,
    paired_improvement,
    probability_of_improvement,
    sign_flip_p,
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


def exact_resampled_means(scores):
    return sorted(stdlib.fmean(drawn) for drawn in itertools.product(scores, repeat=len(scores)))


def test_the_interval_is_that_of_all_resamples():
    scores = [0.0, 1.0, 5.0, 6.0]
    every = exact_resampled_means(scores)  # 256 of them
    found = bootstrap([np.array(scores)], mean, level=0.8, resamples=20_000)
    assert found == Estimate(3.0, np.quantile(every, 0.1), np.quantile(every, 0.9))


def test_beds_are_resampled_apart():
    # one score in each bed: whatever is drawn is the same, so there is no spread, however far apart the beds are
    assert bootstrap([np.array([0.0]), np.array([1.0])], mean) == Estimate(0.5, 0.5, 0.5)
    assert bootstrap([np.array([]), np.array([1.0])], mean) == Estimate(1.0, 1.0, 1.0)


def test_no_score_is_refused():
    with pytest.raises(ValueError, match="must hold a score"):
        bootstrap([np.array([])])


def test_an_improvement_by_hand():
    # bed one: 2 > 1, 2 = 2, 0 < 1, 0 < 2 gives 1.5 of 4; bed two: 3 > 0 gives 1
    treated, control = [np.array([2.0, 0.0]), np.array([3.0])], [np.array([1.0, 2.0]), np.array([0.0])]
    assert probability_of_improvement(treated, control) == (1.5 / 4 + 1) / 2
    # by seed: 2 - 1 > 0, 0 - 2 < 0; 3 - 0 > 0
    assert paired_improvement([np.array([1.0, -2.0]), np.array([3.0])]) == (0.5 + 1) / 2
    assert paired_improvement([np.array([0.0])]) == 0.5


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
@pytest.mark.parametrize("size", [1, 5, 8])
def test_exact_p_values_are_those_of_all_signs(size, statistic):
    scores = random_scores(size, size) + 0.5
    slow = slow_interquartile_mean if statistic is interquartile_mean else stdlib.fmean
    observed = abs(slow(scores))
    found = [
        abs(slow([s * x for s, x in zip(signs, scores, strict=True)]))
        for signs in itertools.product((1, -1), repeat=size)
    ]
    assert sign_flip_p([scores], statistic) == sum(each >= observed - 1e-12 for each in found) / len(found)


def test_a_sampled_p_value_is_near_the_exact_one(monkeypatch):
    scores = random_scores(10, 3) + 0.6
    exact = sign_flip_p([scores], mean)
    monkeypatch.setattr("benchmarks.support.comparison.statistics.MOST_EXACT", 4)
    assert exact == pytest.approx(sign_flip_p([scores], mean), abs=4 * (exact / 20_000) ** 0.5)


def test_no_sampled_p_value_is_zero():
    assert sign_flip_p([np.full(40, 1.0)], mean) == 1 / FLIPS  # chance would give all signs once in 2 ** 39


def test_holm_by_hand():
    # sorted 0.01 * 3, 0.02 * 2, 0.5 * 1; none smaller than the one before it
    assert holm({"b": 0.02, "a": 0.01, "c": 0.5}) == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.5})
    assert holm({"a": 0.01, "b": 0.011}) == pytest.approx({"a": 0.02, "b": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(100):
        found = bootstrap([random_scores(10, seed), random_scores(10, seed + 1000)], mean, resamples=400)
        covered += found.low <= 0 <= found.high
    assert 85 <= covered <= 99
