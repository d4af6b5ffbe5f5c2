"""Leaf weights from the tree to the gradient: a branch that repeats its chain must change nothing."""

from dataclasses import replace

import pytest
import torch

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.objectives import KLPenalty, LossAggregation
from tests.support.branched import grow
from tests.support.training import build_experience, built_module, flat, policy_turn, relative_l2, tool_turn

AGGREGATIONS = [
    LossAggregation(),
    LossAggregation(mode="seq-mean-token-mean"),
    LossAggregation(mode="seq-mean-token-sum-norm", norm_length=8),
]
CHAINS = [
    ([policy_turn(5, 6), tool_turn(7)], [policy_turn(8, 9, 10), 1.0]),
    ([policy_turn(11), tool_turn(12, 13)], [policy_turn(14), 0.0]),
    ([policy_turn(5, 15), tool_turn(16)], [policy_turn(17, 18), 0.4]),
]
WEIGHTED = {"leaf_weights": "inverse_fan_out", "advantage_estimator": GroupZScore()}


def plain():
    return grow([[*start, *end] for start, end in CHAINS])


def doubled(*chosen):
    """The same chains, the chosen ones twice from their tool result on."""
    return grow(
        [[*start, [end, end]] if index in chosen else [*start, *end] for index, (start, end) in enumerate(CHAINS)]
    )


@pytest.fixture(scope="module")
def module():
    return built_module(kl_penalty=KLPenalty(coefficient=0.2), entropy_coefficient=0.1)


def update(module, aggregation, step):
    """Loss and gradient of an optimiser step with every term."""
    module.zero_grad()
    policy_loss = replace(module.policy_loss, aggregation=aggregation)
    losses = [policy_loss(module.network, batch, step)[0] for batch in step.micro_batches]
    loss = torch.stack(losses).sum()
    loss.backward()
    return float(loss.detach()), flat(parameter.grad for parameter in module.network.parameters())


@pytest.mark.parametrize(("chosen", "packing"), [((0, 1, 2), "tree"), ((1,), "flat")], ids=["all", "one"])
def test_a_chain_that_is_there_twice_with_half_the_weight_counts_as_once(module, chosen, packing):
    (expected,) = build_experience(module, [plain()], shaping=EntropyShaping(weight=0.0), **WEIGHTED)
    options = {"packing": packing, "max_tokens_per_micro_batch": 12, "shaping": EntropyShaping(weight=0.0)}
    (step,) = build_experience(module, [doubled(*chosen)], **WEIGHTED, **options)
    assert len(step.micro_batches) > 1
    for aggregation in AGGREGATIONS:
        loss, gradient = update(module, aggregation, expected)
        found, again = update(module, aggregation, step)
        assert found == pytest.approx(loss, rel=1e-5)
        assert relative_l2(again, gradient) < 1e-5
        assert gradient.norm() > 1e-3


def test_totals_count_with_the_weights(module):
    (step,) = build_experience(module, [doubled(1)], **WEIGHTED)
    # Four leaves of raw weight 1, 1/2, 1/2, 1: times 4/3. Response tokens 5, 2, 2, 4.
    assert step.global_num_tokens == pytest.approx(4 / 3 * 5 + 2 / 3 * 2 * 2 + 4 / 3 * 4)
    assert step.global_num_sequences == pytest.approx(4)
    (batch,) = step.micro_batches
    assert sorted(batch.weights.tolist()) == pytest.approx([2 / 3, 2 / 3, 4 / 3, 4 / 3])
    (uniform,) = build_experience(module, [doubled(1)])
    assert (uniform.global_num_tokens, uniform.global_num_sequences) == (13, 4)
    assert uniform.micro_batches[0].weights is None


def test_weights_are_those_of_the_trajectories_with_a_reward(module):
    tree = doubled(1)
    object.__setattr__(tree.leaves[0].reward, "is_scored", False)
    (step,) = build_experience(module, [tree], **WEIGHTED)
    assert sorted(step.micro_batches[0].weights.tolist()) == pytest.approx([0.75, 0.75, 1.5])


def test_an_estimator_that_takes_no_weights_is_refused_beside_them(module):
    with pytest.raises(ValueError, match=r"`leaf_weights` must be 'uniform' for an estimator without a parameter"):
        build_experience(module, [plain()], leaf_weights="inverse_fan_out", advantage_estimator=lambda rewards: rewards)


def by_turn(group, advantages):
    """1, 2, ... along each path, and ten times the trajectory's number."""
    return [
        [10 * number + turn for turn in range(sum(segment.source == "policy" for segment in path))]
        for number, path in enumerate(group.tree.path(leaf.segment_id) for leaf in group.leaves)
    ]


@pytest.mark.parametrize(
    ("packing", "shaping"), [("padded", None), ("flat", EntropyShaping(weight=0.0)), ("tree", None)]
)
def test_credit_reaches_the_tokens_of_its_turn(module, packing, shaping):
    (step,) = build_experience(module, [plain()], credit=by_turn, packing=packing, shaping=shaping)
    found = {}
    for batch in step.micro_batches:
        for ids, mask, values in zip(batch.input_ids, batch.response_mask, batch.advantages, strict=True):
            found |= dict(zip(ids[1:][mask].tolist(), values[mask].tolist(), strict=True))
            assert not values[~mask].any()
    assert [found[token] for token in (6, 8, 9, 10)] == [0, 1, 1, 1]
    assert [found[token] for token in (11, 14, 15, 17, 18)] == [10, 11, 20, 21, 21]


def test_a_row_without_turns_of_its_own_needs_no_credit(module):
    tree = grow([[1.0], [policy_turn(5), 0.0]])
    (step,) = build_experience(module, [tree], credit=by_turn)
    assert torch.isfinite(step.micro_batches[0].advantages).all()
