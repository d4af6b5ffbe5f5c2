"""Whitening over an optimiser step: an independent computation, and the same whatever the split."""

import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, local

import pytest

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.training import step_normalization
from aepo_lightning.training.step_normalization import whiten
from tests.support.branched import grow
from tests.support.training import build_experience, built_module, empty_batch, make_tree, policy_turn, tool_turn

CENTERED = {"advantage_estimator": GroupZScore(normalize_by_std=False), "normalize_over": "step"}
TREES = (
    ([[policy_turn(5, 6, 7)], [policy_turn(8), tool_turn(9, 9), policy_turn(10)]], (1.0, 0.0)),
    ([[policy_turn(11)], [policy_turn(12, 13)]], (0.2, 0.6)),
)


@pytest.fixture(scope="module")
def module():
    return built_module()


def by_token(step):
    """First response token of each trajectory -> its advantages, all alike."""
    found = {}
    for batch in step.micro_batches:
        for ids, mask, values in zip(batch.input_ids, batch.response_mask, batch.advantages, strict=True):
            if mask.any():
                assert values[mask].unique().numel() == 1
                assert not values[~mask].any()
                found[int(ids[1:][mask][0])] = float(values[mask][0])
    return found


@pytest.mark.parametrize("packing", ["padded", "tree"])
@pytest.mark.parametrize("budget", [1, 1000])
def test_equals_the_definition_over_tokens(module, packing, budget):
    trees = [make_tree(*each, f"q{number}") for number, each in enumerate(TREES)]
    (step,) = build_experience(module, trees, packing=packing, max_tokens_per_micro_batch=budget, **CENTERED)
    centered = {5: (0.5, 3), 8: (-0.5, 2), 11: (-0.2, 1), 12: (0.2, 2)}
    tokens = [value for value, count in centered.values() for _ in range(count)]
    mean, std = statistics.mean(tokens), statistics.stdev(tokens)
    expected = {token: (value - mean) / std for token, (value, _) in centered.items()}
    assert by_token(step) == pytest.approx(expected, rel=1e-5)


def on_two_ranks(monkeypatch, action):
    """Run an action of (rank) on two threads whose reductions meet."""
    meeting, given, own = Barrier(2), [[], []], local()

    def reduce(values, op="sum"):
        given[own.rank] = values
        meeting.wait(60)
        pairs = list(zip(*given, strict=True))
        meeting.wait(60)
        return [float(max(pair) if op == "max" else sum(pair)) for pair in pairs]

    def run(rank):
        own.rank = rank
        action(rank)

    monkeypatch.setattr(step_normalization, "all_reduce", reduce)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


def test_ranks_share_one_mean_and_deviation(module, monkeypatch):
    trees = [make_tree(*each, f"q{number}") for number, each in enumerate(TREES)]
    (both,) = build_experience(module, trees, **CENTERED)
    steps = [build_experience(module, [tree], **CENTERED | {"normalize_over": "group"})[0] for tree in trees]
    on_two_ranks(monkeypatch, lambda rank: whiten(steps[rank].micro_batches))
    expected, found = by_token(both), {}
    for batch in (batch for step in steps for batch in step.micro_batches):
        batch.advantages = batch.token_advantages
    for step in steps:
        found |= by_token(step)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_rank_without_tokens_takes_part(module, monkeypatch):
    (step,) = build_experience(module, [make_tree(*TREES[0])], **CENTERED | {"normalize_over": "group"})
    on_two_ranks(monkeypatch, lambda rank: whiten([empty_batch()] if rank else step.micro_batches))
    (batch,) = step.micro_batches
    values = batch.token_advantages[batch.response_mask]
    assert float(values.sum()) == pytest.approx(0, abs=1e-6)
    assert float(values.std()) == pytest.approx(1, rel=1e-5)


def test_equal_advantages_become_exact_zeros(module):
    trees = [make_tree([[policy_turn(5, 6)], [policy_turn(7)]], (0.1, 0.1))]
    (step,) = build_experience(module, trees, advantage_estimator=lambda rewards: rewards, normalize_over="step")
    assert set(by_token(step).values()) == {0.0}


def unscored(tree):
    for leaf in tree.leaves:
        leaf.reward = replace(leaf.reward, is_scored=False)
    return tree


def test_groups_without_a_reward_are_not_whitened(module):
    first, second = (make_tree(*each, f"q{number}") for number, each in enumerate(TREES))
    (alone,) = build_experience(module, [first], **CENTERED)
    (both,) = build_experience(module, [first, unscored(second)], **CENTERED)
    assert by_token(both) == by_token(alone)
    assert both.global_num_tokens == alone.global_num_tokens


def test_tokens_count_with_the_weight_of_their_trajectory(module):
    end = [policy_turn(8, 9), 1.0]
    once = [policy_turn(5), tool_turn(6), *end], [policy_turn(7), 0.0]
    twice = [policy_turn(5), tool_turn(6), [end, end]], [policy_turn(7), 0.0]
    options = CENTERED | {"leaf_weights": "inverse_fan_out"}
    expected, found = (by_token(build_experience(module, [grow(tree)], **options)[0]) for tree in (once, twice))
    # Bessel's correction counts tokens as they are: 4 / 3 without copies, 7 / 6 with them.
    assert found == pytest.approx(
        {token: value * (4 / 3 * 6 / 7) ** 0.5 for token, value in expected.items()}, rel=1e-5
    )
