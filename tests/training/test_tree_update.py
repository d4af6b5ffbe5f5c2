"""The contract of packed training: whatever the packing, every number of an update is that of padded rows."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.objectives import Cispo, ClippedSurrogate, KLPenalty, LossAggregation
from aepo_lightning.policy.publishing.gather import named_weights
from tests.support.packing import PACKINGS, branched_trees, grouped_policy, num_tokens, update
from tests.support.ranks import run_ranks
from tests.support.slow import first_quick, quick
from tests.support.training import (
    FixedData,
    at_temperature,
    build_experience,
    built_module,
    experience_builder,
    make_datamodule,
    make_module,
    make_run,
    relative_l2,
    small_policy,
)

OBJECTIVES = {
    "grpo": ClippedSurrogate(),
    "ebpo": ClippedSurrogate(preserve_high=1.0),
    "gppo": ClippedSurrogate(preserve_low=1.0, preserve_high=1.0),
    "ce_gppo": ClippedSurrogate(preserve_low=0.75, preserve_high=1.0, clip_range_high=0.28),
    "gspo": ClippedSurrogate(ratio_level="sequence", clip_range_low=0.02, clip_range_high=0.02),
    "dual_clip": ClippedSurrogate(dual_clip=1.5),
    "cispo": Cispo(clip_range_high=0.5),
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
FULL = {
    "kl_penalty": KLPenalty(coefficient=0.1),
    "entropy_coefficient": 0.01,
    "aggregation": LossAggregation(mode="seq-mean-token-mean"),
    "experience": {"shaping": EntropyShaping(), "max_tokens_per_micro_batch": 60},
}


def check_equal(found, expected, tolerance):
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert relative_l2(found["gradients"], expected["gradients"]) < tolerance
    assert found["rows"].keys() == expected["rows"].keys()
    for key, numbers in expected["rows"].items():
        torch.testing.assert_close(found["rows"][key], numbers, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", quick({str(each).removeprefix("torch."): each for each in TOLERANCES}, "float64"))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_the_same_on_packed_tokens(name, dtype):
    trees = branched_trees(seed=list(OBJECTIVES).index(name))
    options = FULL | {"objective": OBJECTIVES[name], "dtype": dtype}
    expected = update("padded", trees, **options)
    for packing in PACKINGS:
        found = update(packing, trees, **options)
        check_equal(found, expected, TOLERANCES[dtype])
        assert found["num_micro_batches"] > 1


@pytest.mark.parametrize("seed", first_quick(range(6)))
@pytest.mark.parametrize("packing", PACKINGS)
def test_random_trees_train_the_same_in_float64(packing, seed):
    trees = branched_trees(num_trees=2, seed=seed, num_leaves=2 + seed, longest=3 + 2 * seed)
    options = {"dtype": torch.float64, "seed": seed, "experience": {"max_tokens_per_micro_batch": 20 + 30 * seed}}
    check_equal(update(packing, trees, **options), update("padded", trees, **options), 1e-10)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_temperature_and_dropped_groups_change_nothing(packing, temperature):
    trees = at_temperature(branched_trees(), temperature)
    for leaf in trees[1].leaves:
        leaf.reward = replace(leaf.reward, reward=1.0)
    options = {
        "dtype": torch.float64,
        "experience": {"drop_zero_variance_groups": True, "shaping": EntropyShaping(scope="minibatch")},
    }
    check_equal(update(packing, trees, **options), update("padded", trees, **options), 1e-10)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_gradient_checkpointing_recomputes_packed_tokens(packing, is_tied):
    trees, policy = branched_trees(), grouped_policy(tie_word_embeddings=is_tied)
    options = {"dtype": torch.float64, "policy": policy}
    expected = update("padded", trees, **options)
    check_equal(update(packing, trees, gradient_checkpointing=True, **options), expected, 1e-10)


@pytest.mark.parametrize("packing", PACKINGS)
def test_any_number_of_micro_batches_accumulates_to_the_same(packing):
    trees = branched_trees()
    found = {
        budget: update(packing, trees, dtype=torch.float64, experience={"max_tokens_per_micro_batch": budget})
        for budget in (10_000, 80, 40, 1)
    }
    counts = [each["num_micro_batches"] for each in found.values()]
    assert counts[0] == 1
    assert counts == sorted(set(counts))
    for each in found.values():
        check_equal(each, found[10_000], 1e-10)


def test_tokens_run_fall_from_padded_to_flat_to_tree():
    trees = branched_trees()
    for budget in (10_000, 80, 40, 1):
        options = {"experience": {"max_tokens_per_micro_batch": budget}}
        padded, flat, tree = (sum(update(packing, trees, **options)["num_tokens"]) for packing in ("padded", *PACKINGS))
        assert flat == sum(len(path.token_ids) for each in trees for path in each.trajectories())
        assert tree <= flat <= padded
    whole = update("tree", trees, experience={"max_tokens_per_micro_batch": 10_000})["num_tokens"]
    assert sum(whole) <= sum(len(segment.token_ids) for tree in trees for segment in tree.segments)


@pytest.mark.parametrize("packing", PACKINGS)
def test_scoring_reference_and_update_run_the_packed_tokens_only(packing):
    module = built_module(kl_penalty=KLPenalty(coefficient=0.1))
    seen = []
    for network in (module.network, *module._reference):
        network.model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    (minibatch,) = build_experience(module, branched_trees(), packing=packing)
    (batch,) = minibatch.micro_batches
    module.policy_loss(module.network, batch, minibatch)
    num_tokens = len(batch.packed.input_ids)
    trial = [24, 19]  # the tree that each network is tried with, padded and packed
    assert seen == [*trial, num_tokens, *trial, num_tokens, num_tokens]


def test_a_batch_moves_with_its_packed_tokens():
    (minibatch,) = build_experience(built_module(), branched_trees(), packing="tree")
    (batch,) = minibatch.to("meta").micro_batches
    assert batch.packed.input_ids.device == batch.input_ids.device == torch.device("meta")


@pytest.mark.parametrize("packing", PACKINGS)
def test_autocast_to_bfloat16_trains_the_same_as_far_as_its_eight_bits_go(packing):
    trees = branched_trees()
    expected = update("padded", trees, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        padded = update("padded", trees)
        found = update(packing, trees)
    # No farther from float64 than padded rows are, but for the luck of rounding.
    errors = [relative_l2(each["gradients"].double(), expected["gradients"]) for each in (found, padded)]
    assert errors[0] < 2 * errors[1] + 0.01


def train(rank, folder, packing, trees, strategy="auto", world=1):
    """One optimiser step on the rank's share of the trees."""
    module = make_module(
        policy=grouped_policy(), kl_penalty=KLPenalty(coefficient=0.1), entropy_coefficient=0.01, max_grad_norm=1e9
    )
    share = len(trees) // world
    data = LateData(trees[rank * share : (rank + 1) * share], packing, len(trees))
    run = make_run(folder, module, data, devices=world, strategy=strategy)
    run.fit()
    return {
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "logs": run.logger.numbers(),
        "counts": [len(minibatch.micro_batches) for minibatch in data.minibatches],
        "num_empty": sum(-1 in batch.group_index for batch in data.minibatches[0].micro_batches),
    }


class LateData(FixedData):
    """Steps that are built when the module is there to score them."""

    def __init__(self, trees, packing, questions_per_step):
        super().__init__([])
        self.trees = trees
        self.options = {"packing": packing, "questions_per_step": questions_per_step, "max_tokens_per_micro_batch": 60}

    def train_dataloader(self):
        module = self.trainer.lightning_module
        with torch.no_grad():
            for parameter in module.network.parameters():
                parameter.mul_(1.05)  # away from the reference
        self.minibatches = 2 * build_experience(module, self.trees, **self.options)
        return super().train_dataloader()


@pytest.mark.distributed
@pytest.mark.parametrize("packing", first_quick(reversed(PACKINGS)))
def test_two_fsdp_ranks_on_packed_tokens_equal_one_process_on_padded_rows(tmp_path, packing):
    # The second rank has much less to do, so that it runs out of micro-batches.
    trees = [*branched_trees(2, num_leaves=9), *branched_trees(2, seed=1, num_leaves=2, longest=2)]
    single = train(0, tmp_path / "single", "padded", trees)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    ranks = run_ranks(train, tmp_path / "ranks", packing, trees, strategy, 2)
    assert ranks[0]["counts"] == ranks[1]["counts"]
    assert ranks[1]["num_empty"] > ranks[0]["num_empty"] == 0
    compare = partial(pytest.approx, rel=1e-5, abs=1e-5)
    assert [log[:2] for log in ranks[0]["logs"]] == [log[:2] for log in single["logs"]]
    for (step, name, found), (_, _, expected) in zip(ranks[0]["logs"], single["logs"], strict=True):
        assert found == compare(expected), (step, name)
    for each in ranks:
        for name, weight in single["weights"].items():
            torch.testing.assert_close(each["weights"][name], weight, atol=1e-5, rtol=1e-5)


def roll_out_and_train(folder, packing):
    """Two iterations of rollouts with branches, two optimiser steps each."""
    policy = small_policy()
    builder = experience_builder(
        advantage_estimator=GroupZScore(),
        shaping=EntropyShaping(),
        questions_per_step=2,
        max_tokens_per_micro_batch=96,
        packing=packing,
    )
    # A large eps: Adam turns the last bits of a vanishing gradient into a step of full size.
    module = make_module(policy, optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5))
    datamodule = make_datamodule(policy, experience=builder, questions_per_iteration=4)
    run = make_run(folder, module, datamodule, max_epochs=2)
    sizes = []
    datamodule.train_dataloader = partial(_recording, datamodule.train_dataloader, sizes)
    run.fit()
    return run.logger.numbers(), sizes


def _recording(load, sizes):
    loader = load()
    sizes += [num_tokens(batch) for minibatch in loader for batch in minibatch.micro_batches]
    return loader


@pytest.mark.slow
def test_a_run_on_packed_tokens_logs_what_one_on_padded_rows_logs(tmp_path):
    expected, padded = roll_out_and_train(tmp_path / "padded", "padded")
    compare = partial(pytest.approx, rel=1e-5, abs=1e-5)
    totals = {"padded": sum(padded)}
    for packing in PACKINGS:
        found, sizes = roll_out_and_train(tmp_path / packing, packing)
        totals[packing] = sum(sizes)
        assert [log[:2] for log in found] == [log[:2] for log in expected]
        for (step, name, value), (_, _, other) in zip(found, expected, strict=True):
            # How much padding there is, and in how many micro-batches, is what packing changes.
            assert name.startswith("experience/") or value == compare(other), (step, name)
    assert totals["tree"] < totals["flat"] < totals["padded"]
