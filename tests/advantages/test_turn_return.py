from itertools import product

import pytest
import torch

from aepo_lightning.advantages import LeaveOneOut, TurnReturn
from aepo_lightning.contracts.objective import Credit
from tests.support.branched import grow
from tests.support.groups import group_of, random_group
from tests.support.training import policy_turn, tool_turn


def test_by_hand():
    tree = grow([[policy_turn(5), tool_turn(9), policy_turn(6), 1.0], [policy_turn(8), 0.5], [policy_turn(7), 0.0]])
    group = group_of(tree)
    # Returns 0.5, 1 against those of the others at turns 0 and 1: those that have stopped keep their reward.
    assert TurnReturn(discount=0.5)(group, group.rewards) == [
        pytest.approx([0.5 - 0.25, 1.0 - 0.25]),
        pytest.approx([0.5 - 0.25]),
        pytest.approx([0.0 - 0.5]),
    ]
    assert isinstance(TurnReturn(), Credit)


@pytest.mark.parametrize("mode", ["uniform", "inverse_fan_out"])
def test_without_a_discount_it_is_leave_one_out(mode):
    group = random_group(3, mode)
    expected = LeaveOneOut(unit="root")(group.rewards, weights=group.weights, roots=group.roots).tolist()
    for row, value in zip(TurnReturn(discount=1.0)(group, group.rewards), expected, strict=True):
        assert row == pytest.approx([value] * len(row))


def test_a_single_root_chain_has_no_advantage():
    group = group_of(grow([[policy_turn(5), tool_turn(9), [[policy_turn(6), 1.0], [policy_turn(7), 0.0]]]]))
    assert TurnReturn()(group, group.rewards) == [[0.0, 0.0], [0.0, 0.0]]


STOP, GO = 0.3, 0.6
"""Probabilities to stop at the first turn, and to do the better of two things at the second."""
CHAINS = {
    # turns, probability, reward, d log p / d logit of stopping, the same of the better thing
    "stop": ([policy_turn(5)], STOP, 0.4, (1 - STOP, None)),
    "good": ([policy_turn(6), tool_turn(9), policy_turn(7)], (1 - STOP) * GO, 1.0, (-STOP, 1 - GO)),
    "bad": ([policy_turn(6), tool_turn(9), policy_turn(8)], (1 - STOP) * (1 - GO), 0.0, (-STOP, -GO)),
}


@pytest.mark.parametrize(("discount", "size"), [(1.0, 2), (0.7, 3)])
def test_the_gradient_is_unbiased_where_the_policy_decides_when_to_stop(discount, size):
    # By enumeration of all groups: the policy stops at once or takes a second turn.
    found = [0.0, 0.0]
    for names in product(CHAINS, repeat=size):
        chains = [CHAINS[name] for name in names]
        probability = torch.tensor([chain[1] for chain in chains]).double().prod().item()
        group = group_of(grow([[*turns, reward] for turns, _, reward, _ in chains]))
        for row, (_, _, _, scores) in zip(TurnReturn(discount=discount)(group, group.rewards), chains, strict=True):
            for turn, value in enumerate(row):
                found[turn] += probability * value * scores[turn] / size
    # Of the discounted objective J = stop r + (1 - stop) g go, with the second turn's return not discounted again.
    second = (1 - STOP) * GO * (1 - GO)
    first = STOP * (1 - STOP) * (0.4 - discount * GO)
    assert found == pytest.approx([first, second], abs=1e-7)


def test_baselines_added_up_over_the_own_turns_are_biased_in_the_same_world():
    # Rewards 0 and R normalised turn by turn among those that got there and accumulated: what the reports describe.
    found = 0.0
    for names in product(CHAINS, repeat=3):
        chains = [CHAINS[name] for name in names]
        probability = torch.tensor([chain[1] for chain in chains]).double().prod().item()
        by_turn = [[0.4] if name == "stop" else [0.2, CHAINS[name][2] - 0.2] for name in names]
        for row, (_, _, _, scores) in zip(by_turn, chains, strict=True):
            means = [
                sum(r[t] for r in by_turn if len(r) > t) / sum(len(r) > t for r in by_turn) for t in (0, 1)[: len(row)]
            ]
            found += probability * (sum(row) - sum(means)) * scores[0] / 3
    unbiased = 2 / 3 * STOP * (1 - STOP) * (0.4 - GO)
    assert abs(found - unbiased) > 0.01


@pytest.mark.parametrize("discount", [0.0, 1.1])
def test_refuses_a_discount_without_meaning(discount):
    with pytest.raises(ValueError, match=r"`discount` must be in \(0, 1\], but got"):
        TurnReturn(discount=discount)
