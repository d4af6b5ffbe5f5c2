"""Statistics of evaluations against numbers by hand, slow references in plain Python, and laws."""

import itertools
import statistics as stdlib
from math import comb

import numpy as np
import pytest

from aepo_lightning.evaluation import statistics
from aepo_lightning.evaluation.statistics import (
    FLIPS,
    Estimate,
    bootstrap,
    holm,
    interval_over_questions,
    majority_vote,
    mean,
    paired_difference,
    pass_at_k_of_questions,
    sign_flip_p,
    tool_productivity,
)

HALVES = np.array([0.0, 0.5, 1.0, 0.5])


def random_scores(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def test_the_interval_is_that_of_all_resamples():
    scores = [0.0, 1.0, 5.0, 6.0]
    every = sorted(stdlib.fmean(drawn) for drawn in itertools.product(scores, repeat=4))  # 256 of them
    found = bootstrap([np.array(scores)], mean, level=0.8, resamples=20_000)
    assert found == Estimate(3.0, np.quantile(every, 0.1), np.quantile(every, 0.9))


def test_strata_are_resampled_apart():
    # one score in each: whatever is drawn is the same, so there is no spread, however far apart they are
    assert bootstrap([np.array([0.0]), np.array([1.0])]) == Estimate(0.5, 0.5, 0.5)
    assert bootstrap([np.array([]), np.array([1.0])]) == Estimate(1.0, 1.0, 1.0)


def test_no_score_is_refused():
    with pytest.raises(ValueError, match="must hold a score"):
        bootstrap([np.array([])])


def test_blocks_of_a_large_bootstrap_draw_what_one_block_would(monkeypatch):
    strata, pairs = [random_scores(7, 1), random_scores(30, 2)], [random_scores(30, 3) + 0.3]
    whole = bootstrap(strata, resamples=200), sign_flip_p(pairs)
    monkeypatch.setattr(statistics, "_BLOCK", 1000)
    assert (bootstrap(strata, resamples=200), sign_flip_p(pairs)) == whole
    # and so does a table of all of them at once
    random = np.random.default_rng(0)
    drawn = [each[random.integers(each.size, size=(200, each.size))] for each in strata]
    assert whole[0].low == pytest.approx(np.quantile(np.concatenate(drawn, axis=1).mean(axis=1), 0.025))


@pytest.mark.parametrize(
    ("values", "bounds", "low", "high"),
    [
        # 3 questions: 0.025^(1/3) = 0.2924, so fewer than 0.7076 of all would be something else
        (np.zeros(3), (0.0, 1.0), 0.0, 0.7076),
        (np.ones(3), (0.0, 1.0), 0.2924, 1.0),
        (np.full(3, 0.5), (0.0, 1.0), 0.1462, 0.8538),
        (np.zeros(3), (-1.0, 1.0), -0.7076, 0.7076),
        (np.ones(1), (0.0, 1.0), 0.025, 1.0),
    ],
)
def test_an_interval_of_equal_values_is_no_point(values, bounds, low, high):
    found = interval_over_questions(values, bounds)
    assert found.value == values[0]
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_an_interval_over_questions_is_a_bootstrap_of_their_means():
    found = interval_over_questions(HALVES)
    assert found == bootstrap([HALVES])
    assert found.low < 0.5 < found.high
    shuffled = interval_over_questions(HALVES[[3, 0, 2, 1]])
    assert shuffled.value == found.value


def test_more_samples_of_the_same_questions_do_not_look_like_more_questions():
    # twice the samples with the same outcome say nothing about other questions: the interval stays
    assert interval_over_questions(np.repeat(HALVES, 4)).low > interval_over_questions(HALVES).low


@pytest.mark.parametrize("size", [1, 5, 8])
def test_exact_p_values_are_those_of_all_signs(size):
    scores = random_scores(size, size) + 0.5
    observed = abs(stdlib.fmean(scores))
    flipped = itertools.product((1, -1), repeat=size)
    found = [abs(stdlib.fmean([s * x for s, x in zip(signs, scores, strict=True)])) for signs in flipped]
    assert sign_flip_p([scores]) == sum(each >= observed - 1e-12 for each in found) / len(found)


def test_a_sampled_p_value_is_near_the_exact_one(monkeypatch):
    scores = random_scores(10, 3) + 0.6
    exact = sign_flip_p([scores], mean)
    monkeypatch.setattr(statistics, "MOST_EXACT", 4)
    assert exact == pytest.approx(sign_flip_p([scores], mean), abs=4 * (exact / 20_000) ** 0.5)


def test_no_sampled_p_value_is_zero():
    assert sign_flip_p([np.full(40, 1.0)], mean) == 1 / FLIPS  # chance would give all signs once in 2 ** 39


def test_holm_by_hand():
    # sorted 0.01 * 3, 0.02 * 2, 0.5 * 1; none smaller than the one before it
    assert holm({"b": 0.02, "a": 0.01, "c": 0.5}) == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.5})
    assert holm({"a": 0.01, "b": 0.011}) == pytest.approx({"a": 0.02, "b": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_a_paired_difference_by_hand():
    # (1 - 0) + (1 - 1) + (0 - 0) + (1 - 0) over 4; of 16 signs the two of 1 - 0 agree in 8, and 0 has no sign
    values, others = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
    found = paired_difference(values, others)
    assert found.difference.value == 0.5
    assert found.p == 0.5


def test_a_paired_difference_turns_its_sign_with_the_sides():
    values, others = np.abs(random_scores(20, 1)) % 1, np.abs(random_scores(20, 2)) % 1
    one, other = paired_difference(values, others), paired_difference(others, values)
    assert other.difference.value == -one.difference.value
    assert other.difference.low == pytest.approx(-one.difference.high)
    assert other.p == one.p


def test_equal_sides_differ_by_nothing_within_what_their_number_shows():
    found = paired_difference(HALVES, HALVES)
    assert (found.difference.value, found.p) == (0.0, 1.0)
    assert found.difference.low == -found.difference.high < -0.5  # four questions show little


def test_pairing_removes_what_questions_differ_by():
    hard = np.linspace(0, 0.9, 10)
    found = paired_difference(hard + 0.1, hard + np.tile([0.0, 0.02], 5))
    assert found.p < 0.01
    assert found.difference.low > 0.08
    alone = interval_over_questions(hard)
    assert alone.high - alone.low > 10 * (found.difference.high - found.difference.low)


def test_sides_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="must have a value for each of 4 questions, but got 3"):
        paired_difference(HALVES, HALVES[:3])


def test_pass_at_k_of_questions_by_hand():
    # 2 of 4 right: pass@1 1/2, pass@2 1 - 1/6; 0 of 3: 0; 1 of 1 has no two samples
    assert pass_at_k_of_questions([2, 0, 1], [4, 3, 1], 1).tolist() == pytest.approx([0.5, 0.0, 1.0])
    assert pass_at_k_of_questions([2, 0, 1], [4, 3, 1], 2).tolist() == pytest.approx([5 / 6, 0.0])


@pytest.mark.parametrize(("num_correct", "num_samples"), [(0, 5), (2, 5), (5, 5), (3, 8)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_correct, num_samples):
    outcomes = [1] * num_correct + [0] * (num_samples - num_correct)
    found = []
    for k in range(1, num_samples + 1):
        subsets = list(itertools.combinations(outcomes, k))
        assert len(subsets) == comb(num_samples, k)
        found += pass_at_k_of_questions([num_correct], [num_samples], k).tolist()
        assert found[-1] == pytest.approx(stdlib.fmean(any(subset) for subset in subsets))
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("answers", "scores", "score", "is_tied"),
    [
        (["a", "b", "a"], [1.0, 0.0, 1.0], 1.0, False),
        (["a", "b"], [1.0, 0.0], 0.5, True),
        (["", "", "b"], [0.0, 0.0, 1.0], 1.0, False),
        (["", ""], [0.0, 0.0], 0.0, False),
        (["a", "a", "b"], [1.0, 0.0, 0.0], 0.5, False),  # a judge that said both of one answer
        (["a", "a", "b"], [None, 1.0, 0.0], 1.0, False),
        (["a", "a", "b"], [None, None, 0.0], None, False),
        (["a", "b"], [None, 0.0], None, True),
    ],
)
def test_the_answer_that_most_samples_give_wins(answers, scores, score, is_tied):
    for order in ([*range(len(answers))], [*range(len(answers))][::-1]):
        vote = majority_vote([answers[i] for i in order], [scores[i] for i in order])
        assert (vote.score, vote.is_tied) == (score, is_tied)


def test_a_vote_needs_a_score_for_each_answer():
    with pytest.raises(ValueError, match="must be as many as the 2 answers, but got 1"):
        majority_vote(["a", "b"], [1.0])


def test_tool_productivity_by_hand():
    # 0.5 * 0.4 / (0.4 + 0.1) * 100
    assert tool_productivity(0.5, 0.4) == pytest.approx(40.0)
    assert tool_productivity(1.0, 0.0) == 0.0


def covered(make, truth, bounds, repeats=100, resamples=400):
    found = [interval_over_questions(make(seed), bounds, resamples=resamples) for seed in range(repeats)]
    return sum(each.low <= truth <= each.high for each in found) / repeats


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    assert 0.85 <= covered(lambda seed: random_scores(20, seed), 0.0, (-9.0, 9.0)) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("num_questions", "rate"), [(30, 0.5), (30, 0.02), (103, 0.48), (500, 0.11), (30, 0.99)])
def test_intervals_of_benchmarks_cover_the_truth(num_questions, rate):
    """Five samples of questions whose chances differ, and as few questions as AIME has."""

    def means(seed):
        random = np.random.default_rng(seed)
        chances = random.beta(rate, 1 - rate, size=num_questions)
        return random.binomial(5, chances) / 5

    assert covered(means, rate, (0.0, 1.0), repeats=500, resamples=1000) >= 0.9
