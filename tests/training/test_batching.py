"""Micro-batches: evenly filled, as many as needed, and described exactly."""

from random import Random

import pytest
import torch

from aepo_lightning.advantages import GroupZScore
from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.tree import Trajectory
from aepo_lightning.ops.tree_partition import fill_bins
from aepo_lightning.policy.network import TokenScores
from aepo_lightning.training.batching import Batcher, Row, balanced_bins, describe_batches
from tests.support.packing import branched_trees, num_tokens
from tests.support.training import experience_builder, random_trees

PACKINGS = ("padded", "flat", "tree")


def row(length, group=0):
    """A trajectory that shares nothing with one of another length."""
    return Row(
        trajectory=Trajectory(
            token_ids=[length] * length,
            is_sampled=[False] + [True] * (length - 1),
            logprobs=[0.0] * length,
            entropies=[0.0] * length,
            prompt_length=1,
        ),
        group=group,
        reward=0.0,
        advantage=1.0,
    )


def split(lengths, budget, packing="flat"):
    return Batcher(max_tokens=budget, packing=packing).micro_batches([row(length) for length in lengths])


def lengths_of(batches):
    return [sorted(batch.lengths.tolist(), reverse=True) for batch in batches]


def test_rows_are_spread_over_the_micro_batches_that_the_budget_asks_for():
    # 6 rows of 10 tokens within 40 need two micro-batches; first fit would fill 40 and 20, an even spread 30 and 30.
    assert lengths_of(split([10] * 6, 40)) == [[10, 10, 10], [10, 10, 10]]
    assert lengths_of(split([10] * 6, 40, "padded")) == [[10, 10, 10], [10, 10, 10]]


def test_the_largest_micro_batch_is_as_small_as_their_number_allows():
    # 12 + 8 + 7 + 5 + 4 = 36 within 24 need two: first fit makes 24 and 12, the best is 12 + 5 and 8 + 7 + 4.
    found = split([12, 8, 7, 5, 4], 24)
    assert len(found) == 2
    assert sorted(num_tokens(batch) for batch in found) == [17, 19]


def best_largest(sizes, num_bins, budget):
    """The smallest possible largest bin, by trying everything."""
    best = sum(sizes)
    for choice in range(num_bins ** len(sizes)):
        totals = [0] * num_bins
        for size in sizes:
            choice, index = divmod(choice, num_bins)
            totals[index] += size
        if max(totals) <= max(budget, *sizes):
            best = min(best, max(totals))
    return best


def test_bins_are_near_the_best_there_are():
    random = Random(0)
    for _ in range(30):
        sizes = [random.randint(1, 20) for _ in range(7)]
        budget = random.randint(max(sizes), 40)
        num_bins = len(fill_bins(sizes, budget))
        if num_bins > 3:
            continue
        found = balanced_bins(lambda cap, sizes=sizes: fill_bins(sizes, cap), num_bins, budget, sum(sizes))
        assert sorted(index for each in found for index in each) == list(range(7))
        assert len(found) <= num_bins
        largest = max(sum(sizes[index] for index in each) for each in found)
        # First fit decreasing at the best capacity is within 13/11 of the optimum (MULTIFIT).
        assert largest <= min(budget, 13 / 11 * best_largest(sizes, num_bins, budget))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("budget", [1, 30, 64, 100, 10_000])
def test_spreading_needs_no_more_micro_batches_and_none_that_is_larger(packing, budget):
    trees = branched_trees(4)
    builder = experience_builder(
        advantage_estimator=GroupZScore(), packing=packing, max_tokens_per_micro_batch=budget, questions_per_step=4
    )
    rows = [each for index, tree in enumerate(trees) for each in builder._rows(tree, index)]
    batcher = Batcher(max_tokens=budget, packing=packing)
    fill, _ = batcher._filling(rows)
    plain = [num_tokens(batcher.collate([rows[index] for index in each])) for each in fill(budget)]
    found = [num_tokens(batch) for batch in batcher.micro_batches(rows)]
    assert len(found) == len(plain)
    assert max(found) <= max(plain)
    assert found == sorted(found, reverse=True)


def test_a_row_beyond_the_budget_is_alone():
    found = split([50, 10, 10, 10], 20)
    assert [50] in lengths_of(found)
    assert all(num_tokens(batch) <= 20 for batch in found if batch.lengths.tolist() != [50])


def test_without_rows_there_is_nothing_to_spread():
    assert split([], 10) == []


# Description --------------------------------------------------------------------------------------------------------


def describe(*steps):
    return describe_batches(
        [Minibatch(micro_batches=batches, global_num_tokens=1, global_num_sequences=1) for batches in steps]
    )


def test_padding_is_counted_in_tokens():
    batcher = Batcher(max_tokens=100)
    # Three columns of 6 with 6, 4 and 3 tokens: 18 run, 5 padding. Two columns of 4: 8 run, none.
    first, second = batcher.collate([row(6), row(4), row(3)]), batcher.collate([row(4), row(4)])
    found = describe([first], [second])
    assert found.pop("num_tokens_run") == 26
    assert found == {"padding_share": pytest.approx(5 / 26), "micro_batches_per_step": 1, "token_imbalance": 1}
    # An empty micro-batch runs two tokens of padding.
    found = describe([first, batcher.collate([])])
    assert found["padding_share"] == pytest.approx(7 / 20)
    assert found["micro_batches_per_step"] == 2


@pytest.mark.parametrize("packing", ["flat", "tree"])
def test_packed_rows_have_no_padding(packing):
    batcher = Batcher(max_tokens=100, packing=packing)
    assert describe([batcher.collate([row(6), row(4)])])["padding_share"] == 0
    # One token of padding stands for no rows.
    assert describe([batcher.collate([row(6)]), batcher.collate([])])["padding_share"] == pytest.approx(1 / 7)


def test_the_largest_weight_is_that_of_one_token_and_needs_scores():
    def score(batch):
        shifted = (batch.sampler_logprobs + 0.1) * batch.response_mask
        shifted[-1, batch.response_mask[-1].nonzero()[0, 0]] += 0.7
        return TokenScores(logprobs=shifted, entropies=torch.zeros_like(shifted))

    for source, expected in (("recompute", 2.225541), ("sampler", None), ("auto", None)):
        # e^0.8 = 2.225541; the tokens themselves have log-probs down to -2, so a maximum over the padding would be 1.
        builder = experience_builder(advantage_estimator=GroupZScore(), old_logprobs=source)
        found = builder.describe(builder.build(random_trees(1), score)).get("max_importance_weight")
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-5))
