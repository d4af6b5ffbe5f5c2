"""The table as an engine and as a network: both say the same, and trees are made of trajectories that can happen."""

import asyncio
import math
from collections import Counter

import pytest
import torch

from aepo_lightning.advantages import NoBaseline, RootBaseline
from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.budgets import RootShare
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.errors import EngineError
from aepo_lightning.training.presets import AEPO, DAPO
from benchmarks.support.laboratory import truth
from benchmarks.support.laboratory.engine import TabularEngine
from benchmarks.support.laboratory.policy import TabularPolicy
from benchmarks.support.laboratory.updates import Bench
from benchmarks.support.laboratory.variants import unbiased_parts
from benchmarks.support.laboratory.world import World

POLICY = TabularPolicy(World(), scale=1.2, seed=5)


def first_turns(count):
    engine = TabularEngine(POLICY)
    prompt = POLICY.world.tokenizer.encode("q0 e0", add_special_tokens=False)

    async def run():
        return [await engine.generate(prompt, SamplingParams(max_tokens=9, seed=seed)) for seed in range(count)]

    return asyncio.run(run())


def test_first_tokens_are_drawn_as_often_as_the_table_says():
    count = 1000
    counts = Counter(turn.token_ids[0] for turn in first_turns(count))
    chances = POLICY.log_table()[0].exp().tolist()
    for action, chance in enumerate(chances):
        error = math.sqrt(chance * (1 - chance) / count)
        assert abs(counts[POLICY.reader.token(action)] / count - chance) <= 4 * error


def test_the_same_seed_writes_the_same_turn():
    assert first_turns(20) == first_turns(20)


def test_only_plain_sampling_is_possible():
    engine = TabularEngine(POLICY)
    assert isinstance(engine, Engine)
    with pytest.raises(EngineError, match="must be plain sampling"):
        asyncio.run(engine.generate([1], SamplingParams(max_tokens=1, top_p=0.5)))


def test_trees_hold_trajectories_that_can_happen_with_their_rewards_and_exact_numbers():
    bench = Bench(algorithm=AEPO(), policy=POLICY)
    trees = bench.grow(0, 4, seed=2)
    assert sum(len(tree.branch_depths) for tree in trees) > 0
    possible = {path.actions: path for path in truth.paths(POLICY, 0)}
    logs, entropies = POLICY.log_table().tolist(), POLICY.entropy_table().tolist()
    names = {POLICY.reader.token(action): action for action in range(6)}
    for tree in trees:
        for leaf in tree.leaves:
            own = [segment for segment in tree.path(leaf.segment_id) if segment.source is SegmentSource.POLICY]
            path = possible[tuple(names[token] for segment in own for token in segment.token_ids)]
            choices = list(zip(path.states, path.actions, strict=True))
            assert leaf.reward.reward == path.reward
            assert [value for each in own for value in each.logprobs] == [logs[s][a] for s, a in choices]
            assert [value for each in own for value in each.entropies] == [entropies[s] for s, _ in choices]


def test_the_network_scores_what_the_engine_reported():
    bench = Bench(algorithm=AEPO(), policy=POLICY)
    (step,) = bench.steps(bench.grow(1, 1, seed=0))
    (batch,) = step.micro_batches
    # Float32 keeps the engine's numbers in the batch.
    torch.testing.assert_close(batch.old_logprobs.float(), batch.sampler_logprobs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(batch.old_entropies.float(), batch.sampler_entropies, rtol=1e-6, atol=1e-7)


def test_groups_that_would_be_asked_anew_are_steps_without_an_update():
    found = Bench(algorithm=DAPO(budget=2), policy=POLICY).updates(quest=0, num_steps=12, seed=1)
    moves = found.gradients.abs().sum(dim=1)
    assert len(moves) == 12
    assert 0 < int((moves == 0).sum()) < 12
    assert (found.num_tokens > 0).all()


def test_the_estimate_of_a_value_is_the_mean_of_the_leaves_as_the_algorithm_weighs_them():
    parts = {"allocator": RootShare(share=0.5), "branch_policy": EntropyBalanced(gamma=0.0)}
    apart = {"advantage_estimator": NoBaseline(), "credit": RootBaseline()}
    weighed = unbiased_parts(leaf_weights="inverse_fan_out", **apart, **parts)
    (tree,) = Bench(algorithm=weighed, policy=POLICY).grow(0, 1, seed=8)
    assert {LeafOrigin.ROOT, LeafOrigin.BRANCH, LeafOrigin.TOP_UP} == {leaf.origin for leaf in tree.leaves}
    assert Bench(algorithm=unbiased_parts(**parts), policy=POLICY).estimate(tree) == pytest.approx(
        sum(tree.rewards) / 8
    )
    # Each chain from the root counts once, however many leaves it has, and a chain that filled the group not at all.
    chains = [0.0] * tree.global_budget
    for leaf, weight in zip(tree.leaves, tree.leaf_weights("inverse_fan_out"), strict=True):
        if leaf.origin is not LeafOrigin.TOP_UP:
            chains[leaf.seed_path[1]] += weight * leaf.reward.reward
    assert Bench(algorithm=weighed, policy=POLICY).estimate(tree) == pytest.approx(sum(chains) / len(chains))


def test_a_step_of_both_quests_moves_each_by_its_own_groups_where_nothing_goes_over_the_step():
    parts = unbiased_parts(budget=2)
    mixed = Bench(algorithm=parts, policy=POLICY, groups_per_step=2).mixed_updates(3, seed=4)
    for quest, found in enumerate(mixed):
        alone = Bench(algorithm=parts, policy=POLICY).updates(quest, 3, seed=4)
        torch.testing.assert_close(found.gradients, alone.gradients)
        torch.testing.assert_close(found.num_tokens, alone.num_tokens)
        torch.testing.assert_close(found.values, alone.values)
    assert bool(mixed[0].gradients.any())
