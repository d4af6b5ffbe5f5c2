"""Ranks with unequal work: as many micro-batches each, the gradient of one process, and rollouts beside the update."""

from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from aepo_lightning.advantages import EntropyShaping, GroupZScore, LeaveOneOut, NodeValue
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.policy.publishing.gather import named_weights
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.training.batching import Batcher, describe_batches
from tests.support.groups import random_group
from tests.support.packing import num_tokens
from tests.support.ranks import run_ranks
from tests.support.training import (
    FixedData,
    build_experience,
    experience_builder,
    flat,
    make_datamodule,
    make_module,
    make_run,
    random_trees,
)

pytestmark = pytest.mark.distributed

LONG, SHORT = 0, 1
"""Seeds of trees: those of rank 0 are four times as long."""


def trees_of(rank):
    return random_trees(2, seed=rank, longest=16 if rank == LONG else 4)


def informative(trees, is_empty):
    """The same trees; or with equal rewards, so that the groups are left out."""
    for leaf in (leaf for tree in trees for leaf in tree.leaves):
        if is_empty:
            object.__setattr__(leaf.reward, "reward", 1.0)
    return trees


def num_needed(trees, packing):
    """How many micro-batches a rank would need alone."""
    builder = experience_builder(advantage_estimator=GroupZScore())
    rows = [row for index, tree in enumerate(trees) for row in builder._rows(tree, index)]
    return len(Batcher(max_tokens=90, packing=packing).micro_batches(rows))


class BuiltData(FixedData):
    """One optimiser step, built once the network and the process group exist."""

    def __init__(self, trees, **options):
        super().__init__([])
        self.trees = trees
        self.options = options

    def train_dataloader(self):
        module = self.trainer.lightning_module
        self.minibatches = build_experience(
            module, self.trees, questions_per_step=4, max_tokens_per_micro_batch=90, **self.options
        )
        self.figures = describe_batches(self.minibatches)
        return super().train_dataloader()


def step(rank, folder, trees_by_rank, packing, is_sharded=True, is_dropped=False, **parts):
    """One optimiser step on the rank's own trees: what it ran, and the gradient of all ranks."""
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if is_sharded else "auto"
    trees = trees_by_rank[rank] if is_sharded else [tree for trees in trees_by_rank for tree in trees]
    data = BuiltData(trees, packing=packing, drop_zero_variance_groups=is_dropped, shaping=EntropyShaping(), **parts)
    # A rate of 1 without clipping: the weights move by the gradient.
    module = make_module(optimizer=partial(torch.optim.SGD, lr=1.0), max_grad_norm=1e9)
    run = make_run(folder, module, data, devices=2 if is_sharded else 1, strategy=strategy).fit()
    before = dict(module.policy.build_model().named_parameters())
    after = {name: weight.clone() for name, weight in named_weights(run.network)}
    (minibatch,) = data.minibatches
    return {
        "tokens": [num_tokens(batch) if batch.lengths.any() else 0 for batch in minibatch.micro_batches],
        "totals": (minibatch.global_num_tokens, minibatch.global_num_sequences),
        "figures": data.figures,
        "gradient": flat(before[name] - after[name] for name in sorted(after)),
        "loss": run.logger.values("train/loss"),
    }


@pytest.mark.parametrize("packing", ["padded", "flat", "tree"])
@pytest.mark.parametrize("is_dropped", [False, True], ids=["unequal ranks", "a rank without rows"])
def test_unequal_ranks_run_as_many_micro_batches_and_have_the_gradient_of_one_process(tmp_path, packing, is_dropped):
    trees = [informative(trees_of(rank), is_dropped and rank == SHORT) for rank in (LONG, SHORT)]
    single = step(0, tmp_path, trees, packing, is_sharded=False, is_dropped=is_dropped)
    first, second = run_ranks(partial(step, is_dropped=is_dropped), tmp_path, trees, packing)
    assert first["loss"] == pytest.approx(single["loss"], rel=1e-5, abs=1e-6)
    assert single["gradient"].norm() > 1e-2
    assert len(first["tokens"]) == len(second["tokens"]) == num_needed(trees[LONG], packing) > 1
    assert first["totals"] == second["totals"] == single["totals"]
    for each in (first, second):
        # Weights of about 1 carry a rounding error of 1e-7 into the difference.
        torch.testing.assert_close(each["gradient"], single["gradient"], atol=1e-6, rtol=1e-5)
    if is_dropped:
        assert not any(second["tokens"])
    else:
        # The rank with little to do spreads it instead of running out: its largest micro-batch is small.
        assert max(second["tokens"]) < 90 / 2
        assert second["tokens"].count(0) < len(second["tokens"]) - 1


PARTS = {
    "leaf_weights": "inverse_fan_out",
    "advantage_estimator": LeaveOneOut(unit="root"),
    "credit": NodeValue(average="entropy"),
    "normalize_over": "step",
}


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["padded", "tree"])
def test_weights_credit_and_whitening_are_the_same_over_ranks(tmp_path, packing):
    trees = [[random_group(seed).tree for seed in seeds] for seeds in ((1, 3), (2, 7))]
    single = step(0, tmp_path, trees, packing, is_sharded=False, **PARTS)
    plain = step(0, tmp_path, trees, packing, is_sharded=False)
    first, second = run_ranks(partial(step, **PARTS), tmp_path, trees, packing)
    assert first["totals"] == second["totals"] == pytest.approx(single["totals"])
    assert first["loss"] == pytest.approx(single["loss"], rel=1e-5, abs=1e-6)
    for each in (first, second):
        torch.testing.assert_close(each["gradient"], single["gradient"], atol=1e-6, rtol=1e-5)
    assert (single["gradient"] - plain["gradient"]).norm() > 1e-2


def test_the_figures_are_those_of_all_ranks(tmp_path):
    trees = [trees_of(rank) for rank in (LONG, SHORT)]
    first, second = run_ranks(step, tmp_path, trees, "flat")
    assert first["figures"] == second["figures"]
    # An empty micro-batch runs one token of padding.
    padding = [each["tokens"].count(0) for each in (first, second)]
    run = [sum(each["tokens"]) + extra for each, extra in zip((first, second), padding, strict=True)]
    assert first["figures"] == pytest.approx(
        {
            "num_tokens_run": sum(run),
            "padding_share": sum(padding) / sum(run),
            "micro_batches_per_step": len(first["tokens"]),
            "token_imbalance": max(run) / (sum(run) / 2),
        }
    )


# Rollouts beside the update -----------------------------------------------------------------------------------------


def overlapped(rank, folder, devices=1):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if devices == 2 else "auto"
    module = make_module(
        optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-5),
        importance_correction=ImportanceCorrection(mode="truncated"),
    )
    builder = experience_builder(
        advantage_estimator=GroupZScore(), questions_per_step=2, max_tokens_per_micro_batch=64, packing="tree"
    )
    kept = RolloutJournal(folder / "rollouts")
    data = make_datamodule(module.policy, experience=builder, questions_per_iteration=4, overlap=True, journal=kept)
    options = {"max_epochs": 3, "limit_val_batches": 1.0, "check_val_every_n_epoch": 1}
    run = make_run(folder, module, data, devices=devices, strategy=strategy, **options).fit()
    own = [path.name for path in (folder / "rollouts").iterdir() if f"rank{rank}" in path.name]
    return {
        "weights": {name: weight.clone() for name, weight in named_weights(run.network)},
        "losses": run.logger.values("train/loss"),
        "staleness": run.logger.values("rollout/staleness_steps"),
        "files": sorted(own),
    }


@pytest.mark.slow
def test_two_ranks_that_overlap_equal_one_process(tmp_path):
    single = overlapped(0, tmp_path / "single")
    ranks = run_ranks(overlapped, tmp_path / "ranks", 2)
    assert single["staleness"] == ranks[0]["staleness"] == [0, 2, 2]
    assert ranks[0]["losses"] == pytest.approx(single["losses"], rel=1e-5, abs=1e-5)
    for rank, found in enumerate(ranks):
        assert found["files"] == [f"train-0000{index}-rank{rank}.jsonl" for index in range(3)]
        for name, weight in single["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, atol=1e-5, rtol=1e-5)
