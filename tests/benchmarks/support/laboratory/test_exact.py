"""Which parts of an update keep the direction of the true gradient: laws without chance, by enumeration of groups."""

from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.objectives import LossAggregation
from benchmarks.support.laboratory import truth
from benchmarks.support.laboratory.exact import expected_update, path_classes
from benchmarks.support.laboratory.policy import TabularPolicy
from benchmarks.support.laboratory.updates import Bench
from benchmarks.support.laboratory.variants import unbiased_parts
from benchmarks.support.laboratory.world import World

POLICY = TabularPolicy(World(num_steps=1), scale=1.0, seed=4)
THREE_VALUED, TWO_VALUED = 0, 1
"""Quests, by their rewards."""


def compare(algorithm, quest, budget=2):
    """Cosine to the true gradient, and the factor along it."""
    found = expected_update(algorithm, POLICY, quest, budget).flatten()
    target = truth.gradient(POLICY, quest).flatten()
    factor = found @ target / target.square().sum()
    return float(torch.cosine_similarity(found, target, 0)), float(factor)


@pytest.mark.parametrize(
    ("quest", "budget"),
    [(TWO_VALUED, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((THREE_VALUED, 2), (TWO_VALUED, 3)))],
)
def test_a_group_mean_and_token_sums_are_right_up_to_the_known_factor(quest, budget):
    cosine, factor = compare(unbiased_parts(), quest, budget)
    # Rewards and advantages are float32.
    assert cosine == pytest.approx(1.0, abs=1e-10)
    assert factor == pytest.approx((budget - 1) / budget, rel=1e-6)


@pytest.mark.slow
def test_a_constant_length_changes_the_factor_alone():
    aggregation = LossAggregation(mode="seq-mean-token-sum-norm", norm_length=7)
    cosine, factor = compare(unbiased_parts(aggregation=aggregation), TWO_VALUED)
    assert cosine == pytest.approx(1.0, abs=1e-10)
    assert factor == pytest.approx(1 / 2 / 7, rel=1e-6)


def test_a_deviation_keeps_the_direction_of_two_valued_rewards_and_bends_that_of_three():
    scored = unbiased_parts(advantage_estimator=GroupZScore())
    assert compare(scored, TWO_VALUED)[0] == pytest.approx(1.0, abs=1e-10)
    assert compare(scored, THREE_VALUED)[0] < 0.999


@pytest.mark.parametrize("mode", ["token-mean", pytest.param("seq-mean-token-mean", marks=pytest.mark.slow)])
def test_a_mean_over_tokens_bends_the_direction(mode):
    assert compare(unbiased_parts(aggregation=LossAggregation(mode=mode)), TWO_VALUED)[0] < 0.9995


@pytest.mark.slow
def test_entropy_shaping_bends_the_direction():
    algorithm = unbiased_parts(shaping=EntropyShaping(weight=0.2))
    assert compare(algorithm, TWO_VALUED)[0] < 0.9995
    plain = replace(algorithm, shaping=EntropyShaping(weight=0.0))
    assert compare(plain, TWO_VALUED)[0] == pytest.approx(1.0, abs=1e-10)


def test_classes_hold_every_trajectory_once():
    classes = path_classes(POLICY, THREE_VALUED, with_entropies=False)
    assert sum(each.probability for each in classes) == pytest.approx(1.0, rel=1e-13)
    # The score of a distribution has mean 0, at every position.
    first = sum(each.scores[0] for each in classes)
    torch.testing.assert_close(first, torch.zeros_like(first), rtol=0, atol=1e-15)
    assert len(classes) < len(truth.paths(POLICY, THREE_VALUED))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts", "shaped"])
def test_sampled_updates_have_the_enumerated_mean(name):
    shaping = EntropyShaping(weight=1.0) if name == "shaped" else None
    algorithm = unbiased_parts(budget=2, aggregation=LossAggregation(), shaping=shaping)
    expected = expected_update(algorithm, POLICY, THREE_VALUED, 2).flatten()
    rows = Bench(algorithm=algorithm, policy=POLICY).updates(THREE_VALUED, 2000, seed=1).gradients
    errors = rows.std(0) / len(rows) ** 0.5
    assert bool(((rows.mean(0) - expected).abs() <= 4 * errors + 1e-12).all())
    distance = (rows.mean(0) - expected).square().sum()
    assert float(distance) <= 3 * float(errors.square().sum())
