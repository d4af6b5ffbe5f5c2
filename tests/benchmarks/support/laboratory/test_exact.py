"""Which parts of an update keep the direction of the true gradient: laws without chance, by enumeration of groups."""

import math
from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import EntropyShaping, GroupZScore, TopEntropyMask
from aepo_lightning.objectives import LossAggregation
from aepo_lightning.training.presets import CEGPPO, CISPO, DAPO, GPPO, GRPO, GSPO, RLOO, DrGRPO
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


@pytest.mark.slow
def test_training_the_most_uncertain_tokens_alone_bends_the_direction():
    assert compare(unbiased_parts(token_mask=TopEntropyMask(fraction=0.5)), TWO_VALUED)[0] < 0.9995
    everything = unbiased_parts(token_mask=TopEntropyMask(fraction=1.0))
    assert compare(everything, TWO_VALUED)[0] == pytest.approx(1.0, abs=1e-10)


Z_SCORE = (lambda own, other: (own - other) / 2 / (abs(own - other) / math.sqrt(2) + 1e-6), "tokens")
PRESETS = {
    "grpo": (GRPO(), *Z_SCORE),
    "gspo": (GSPO(), Z_SCORE[0], "means"),
    "dr_grpo": (DrGRPO(norm_length=7), lambda own, other: (own - other) / 2, "sums"),
    "rloo": (RLOO(norm_length=7), lambda own, other: own - other, "sums"),
    **{each.name: (each, *Z_SCORE) for each in (DAPO(), GPPO(), CEGPPO(), CISPO())},
}
"""Presets that sample independently: the advantage in a group of two by the rewards, and what the loss averages."""
FACTORS = {"dr_grpo": 1 / 2 / 7, "rloo": 1 / 7}
"""Of those whose expected update is the true gradient, up to the known factor: (k - 1) / k or 1, over the length."""


def by_pairs(quest, advantage, average):
    """The expected update of a group of two: the sum over all pairs of trajectories, from the papers' formulas."""
    ways = [(path, truth.scores(POLICY, path).sum(0)) for path in truth.paths(POLICY, quest)]
    total = torch.zeros_like(ways[0][1])
    for path, scores in ways:
        for other, _ in ways:
            lengths = {"tokens": len(path.states) + len(other.states), "means": 2 * len(path.states), "sums": 2 * 7}
            value = advantage(path.reward, other.reward) / lengths[average]
            # Either of the two may be the first.
            total += 2 * path.probability * other.probability * value * scores
    return total


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("gspo", "rloo") else pytest.mark.slow) for name in PRESETS]
)
def test_the_expected_update_of_a_preset_is_the_sum_over_all_pairs_and_is_the_true_gradient_or_not(name):
    algorithm, advantage, average = PRESETS[name]
    cosines = []
    for quest in (TWO_VALUED, THREE_VALUED):
        expected, target = by_pairs(quest, advantage, average), truth.gradient(POLICY, quest)
        found = expected_update(algorithm, POLICY, quest, 2)
        # Rewards and advantages are float32.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
        cosines.append(float(torch.cosine_similarity(found.flatten(), target.flatten(), 0)))
        if name in FACTORS:
            torch.testing.assert_close(found, FACTORS[name] * target, rtol=1e-5, atol=1e-8)
    assert (min(cosines) > 1 - 1e-9) == (name in FACTORS)


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
