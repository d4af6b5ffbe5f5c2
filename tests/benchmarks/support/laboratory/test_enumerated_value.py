"""Branching without bias, by enumeration of every tree: which combination has none, and what each half of it leaves."""

import math
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest

from aepo_lightning.budgets import RootShare
from benchmarks.support.laboratory.branching_world import Tape, World
from benchmarks.support.laboratory.enumerated_value import (
    FORK,
    LONG,
    PREFIX,
    SIGNALS,
    SPLITS,
    Sampling,
    distance,
    estimate_value,
    expectations,
    true_gradient,
    true_value,
)
from tests.support.paths import ROOT

ZERO = 1e-12
EXACT = ("inverse fan-out, other roots, top-ups count", "inverse fan-out, other roots, top-ups left out")


@cache
def in_rounds():
    return expectations(FORK, Sampling(settings=PREFIX))


def test_a_tape_runs_through_every_outcome_once():
    tape, found = Tape(), {}
    while True:
        first = tape.choose([0.25, 0.0, 0.75])
        outcome = (first, tape.choose([0.5, 0.5])) if first else (first,)
        assert outcome not in found
        found[outcome] = tape.probability
        if not tape.rewind():
            break
    assert found == {(0,): 0.25, (2, 0): 0.375, (2, 1): 0.375}


@pytest.mark.parametrize("world", [FORK, LONG], ids=["fork", "long"])
def test_the_true_gradient_is_the_derivative_of_the_value(world):
    # By central differences in each logit; the policy is a softmax, so probabilities are shifted and divided anew.
    def moved(state, name, step):
        weights = {key: each.probability * math.exp(step * (key == name)) for key, each in world.states[state].items()}
        letters = {
            key: replace(each, probability=weights[key] / sum(weights.values()))
            for key, each in world.states[state].items()
        }
        return true_value(World(states={**world.states, state: letters}))

    for (state, name), slope in true_gradient(world).items():
        assert (moved(state, name, 1e-4) - moved(state, name, -1e-4)) / 2e-4 == pytest.approx(slope, abs=1e-8)


def test_the_combination_has_no_bias_and_each_half_has_one():
    rounds = in_rounds()
    drawn = expectations(FORK, Sampling(settings=SIGNALS["the turn that was drawn"]))
    assert 0.4 < rounds.num_top_ups < 0.6  # m = 2 of k = 3, and the third is a branch or a top-up
    assert rounds.value_bias["inverse fan-out, no top-ups"] == pytest.approx(0, abs=ZERO)
    # The half without weights: leaves of unsure chains, worth 0.5 and not 0.9, count too often.
    assert rounds.value_bias["uniform, no top-ups"] < -0.02
    # The half without the prefix: a wrong answer gets a second try, a right one none.
    assert drawn.value_bias["inverse fan-out, no top-ups"] > 0.03
    assert drawn.value_bias["uniform"] < -0.03
    # A mean in which top-ups are: there are more of them where the roots were sure.
    assert rounds.value_bias["inverse fan-out"] < -0.01
    truth = true_gradient(FORK)
    for name in EXACT:
        assert distance(rounds.gradients[name], truth) < 1e-6  # rewards and weights of rows are of single precision
        assert distance(drawn.gradients[name], truth) > 0.1
    assert distance(rounds.gradients["uniform, group mean"], truth) > 0.1
    assert distance(rounds.gradients["inverse fan-out, group mean"], truth) > 0.1


def test_in_the_order_of_arrival_the_time_that_a_turn_takes_is_a_bias():
    # The engine reports a right answer later than a wrong one: the last of the budget goes to chains that are wrong.
    arrival = expectations(FORK, Sampling(settings=SIGNALS["exact entropy, as chains arrive"]), with_updates=False)
    assert arrival.value_bias["inverse fan-out, no top-ups"] > 0.003


def test_top_ups_that_count_scale_the_gradient_and_top_ups_left_out_do_not():
    found = in_rounds()
    truth, (count, out) = true_gradient(FORK), (found.gradients[name] for name in EXACT)
    for place, slope in truth.items():
        assert out[place] == pytest.approx(slope, abs=1e-6)
        assert count[place] == pytest.approx(slope * (2 + found.num_top_ups) / 2, abs=1e-6)  # E[root chains] / m


def test_the_leaves_of_a_root_chain_weigh_as_much_as_one_chain():
    for _, tree in islice(Sampling(settings=PREFIX).trees(FORK), 25, None):
        weights = tree.leaf_weights("inverse_fan_out")
        totals = defaultdict(float)
        for leaf, weight in zip(tree.leaves, weights, strict=True):
            totals[leaf.seed_path[:2]] += weight
            assert weight == pytest.approx(weight_by_decisions(tree, leaf.seed_path))
        assert all(total == pytest.approx(1) for total in totals.values())
        assert tree.leaf_weights("uniform") == [1.0] * len(tree.leaves)
        assert estimate_value(tree, "uniform", True) == pytest.approx(sum(tree.rewards) / len(tree.leaves))


@pytest.mark.slow
def test_the_guide_has_the_numbers_of_the_enumeration():
    lines = (ROOT / "docs/unbiased_branching.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in rows if row[0] in SIGNALS]
    columns = [*["value"] * 5, *["gradient"] * 5]
    assert len(rows) == len(columns)
    truth = true_gradient(LONG)
    for (signal, split, *cells), column in zip(rows, columns, strict=True):
        found = enumerated(signal, f"m {split}")
        angles = [distance(found.gradients[name], truth) for name in list(found.gradients)[:4]]
        shown = list(found.value_bias.values()) if column == "value" else angles
        assert [float(cell) for cell in cells] == pytest.approx(shown, abs=5e-5), (signal, split, column)
    assert f"The true value is {true_value(LONG):.4f}." in " ".join(lines)


@cache
def enumerated(signal, split):
    return expectations(LONG, SPLITS[split](SIGNALS[signal]))


def weight_by_decisions(tree, path):
    """1 over the product of (1 + branches opened) over all decisions on the way, told from the decisions alone."""
    births = [*path[3::3], math.inf]
    ways = 1
    for number, birth in enumerate(births):
        chain = path[: 2 + 3 * number]
        first = births[number - 1] if number else 0
        opened = [each.num_opened for each in tree.decisions if each.seed_path == chain and first < each.turn <= birth]
        ways *= math.prod(1 + each for each in opened)
    return 1 / ways


@pytest.mark.slow
def test_a_probe_decides_m_without_bias_only_if_it_is_discarded():
    truth = true_gradient(FORK)
    discarded = expectations(FORK, SPLITS["m from a probe that is discarded"](PREFIX))
    kept = expectations(FORK, SPLITS["m from a probe that is kept"](PREFIX))
    assert discarded.value_bias["inverse fan-out, no top-ups"] == pytest.approx(0, abs=ZERO)
    assert abs(kept.value_bias["inverse fan-out, no top-ups"]) > 0.04
    for name in EXACT:
        assert distance(discarded.gradients[name], truth) < 1e-6
        assert distance(kept.gradients[name], truth) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(settings=PREFIX, high=0.75, low=0.25),
        Sampling(settings=PREFIX, budget=4, allocator=RootShare(share=0.25)),
    ],
    ids=["drawn decisions", "branches of branches"],
)
def test_branches_of_branches_and_drawn_decisions_leave_no_bias(sampling):
    found = expectations(LONG if sampling.high == 1 else FORK, sampling, with_updates=False)
    assert found.value_bias["inverse fan-out, no top-ups"] == pytest.approx(0, abs=ZERO)
    assert found.value_bias["uniform, no top-ups"] < -0.002


@pytest.mark.slow
def test_arrival_and_rounds_differ_in_the_longer_world_too():
    arrival = expectations(LONG, Sampling(settings=SIGNALS["exact entropy, as chains arrive"]))
    rounds = expectations(LONG, Sampling(settings=PREFIX))
    truth = true_gradient(LONG)
    assert arrival.value_bias["inverse fan-out, no top-ups"] > 0.002
    assert rounds.value_bias["inverse fan-out, no top-ups"] == pytest.approx(0, abs=ZERO)
    for name in EXACT:
        assert distance(arrival.gradients[name], truth) > 0.005
        assert distance(rounds.gradients[name], truth) < 1e-6
