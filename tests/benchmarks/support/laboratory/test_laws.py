"""Which samplers are biased, and what takes the bias away: by sampling, with fixed seeds and four standard errors."""

import json
import math
from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import LeaveOneOut
from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.budgets import RootShare
from aepo_lightning.training.presets import AEPO
from benchmarks.laboratory import FIGURES
from benchmarks.support.laboratory import truth
from benchmarks.support.laboratory.cases import Case, Setting, measure
from benchmarks.support.laboratory.estimates import describe, mean_of
from benchmarks.support.laboratory.policy import TabularPolicy, at_entropy
from benchmarks.support.laboratory.updates import Bench
from benchmarks.support.laboratory.variants import preset, preset_names, unbiased_parts
from benchmarks.support.laboratory.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BEDS = {
    # Places after a result differ in entropy and in what they are worth.
    "of the place": (at_entropy(World(), 0.6, seed=14), 1, 4.0),
    # Whether the policy thinks in a turn changes both the turn's entropy and what follows.
    "of the tokens": (TabularPolicy(World(), scale=1.5, seed=102), 0, 40.0),
}
"""Policy, quest and gamma, by what entropy and value have in common."""


def branched(bed, signal, weights):
    policy, quest, gamma = BEDS[bed]
    rule = EntropyBalanced(gamma=gamma, penalty_per_step=0.0)
    algorithm = unbiased_parts(
        advantage_estimator=LeaveOneOut(unit="root"),
        allocator=RootShare(share=0.5),
        branch_policy=rule,
        branch_signal=signal,
        leaf_weights=weights,
    )
    return Bench(algorithm=algorithm, policy=policy), quest


@pytest.mark.parametrize(
    ("bed", "signal", "weights", "is_biased"),
    [
        ("of the place", "prefix", "uniform", True),
        ("of the tokens", "after_tool", "inverse_fan_out", True),
        ("of the place", "prefix", "inverse_fan_out", False),
        ("of the tokens", "prefix", "inverse_fan_out", False),
    ],
)
def test_the_value_is_unbiased_with_both_halves_and_biased_with_one(bed, signal, weights, is_biased):
    bench, quest = branched(bed, signal, weights)
    found = [bench.estimate(tree) for part in range(10) for tree in bench.grow(quest, 100, seed=part)]
    value = float(truth.value(bench.policy, quest).detach())
    bias = mean_of(torch.tensor(found, dtype=torch.float64) - value)
    assert (abs(bias.deviations) > 4) == is_biased


def figures(bench, quest, num_steps, seed):
    policy = bench.policy
    target, value = truth.gradient(policy, quest).flatten(), float(truth.value(policy, quest).detach())
    return describe([bench.updates(quest, num_steps, seed)], [target], [value])


@pytest.mark.parametrize(("weights", "is_biased"), [("uniform", True), ("inverse_fan_out", False)])
def test_the_gradient_is_exact_with_both_halves_and_another_root_chains_baseline(weights, is_biased):
    bench, quest = branched("of the tokens", "prefix", weights)
    found = figures(bench, quest, 1500, seed=3)
    assert (found.squared_bias.deviations > 4) == is_biased
    if not is_biased:
        assert abs(found.squared_bias.deviations) <= 4
        # The factor of a baseline that leaves out the own root chain is 1, not (k - 1) / k.
        assert found.scales[0].value == pytest.approx(1.0, abs=4 * found.scales[0].error)


def test_aepo_is_biased_and_independent_samples_with_right_parts_are_not():
    policy, quest, _ = BEDS["of the place"]
    biased = figures(Bench(algorithm=AEPO(), policy=policy), quest, 400, seed=0)
    assert biased.squared_bias.deviations > 4
    assert 0.05 < biased.bias < 0.6
    control = figures(Bench(algorithm=unbiased_parts(), policy=policy), quest, 400, seed=0)
    assert abs(control.squared_bias.deviations) <= 4
    assert control.scales[0].value == pytest.approx(7 / 8, abs=4 * control.scales[0].error)
    assert not math.isinf(control.tokens_per_unit)


def test_the_known_factor_of_leaving_one_out_is_one():
    policy, quest, _ = BEDS["of the place"]
    algorithm = replace(unbiased_parts(), advantage_estimator=LeaveOneOut())
    found = figures(Bench(algorithm=algorithm, policy=policy), quest, 400, seed=0)
    assert found.scales[0].value == pytest.approx(1.0, abs=4 * found.scales[0].error)
    assert abs(found.squared_bias.deviations) <= 4


MIDDLE = Setting(entropy=0.6, world=World())


def estimates(case):
    """The numbers of a case that have an error."""
    named = {name: case[name] for name in ("cosine", "squared_bias", "squared_bias_within")}
    several = {f"{name} {at}": each for name in ("scales", "value_biases") for at, each in enumerate(case[name])}
    return {**named, **several}


@pytest.mark.parametrize("name", preset_names())
def test_the_bias_of_every_preset_is_that_of_the_table(name):
    cases = json.loads(FIGURES.read_text())["cases"]
    (kept,) = [case for case in cases if (case["table"], case["name"], case["entropy"]) == ("Presets", name, 0.6)]
    case = Case(table="Presets", name=name, algorithm=preset(name), setting=MIDDLE)
    found = estimates(measure(case, seconds=0.0, num_groups=128))
    for figure, known in estimates(kept).items():
        error = math.hypot(known["error"], found[figure]["error"])
        assert found[figure]["value"] == pytest.approx(known["value"], abs=4 * error), figure
