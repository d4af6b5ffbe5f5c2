"""Each reward against the other root chains: hand-worked, by a slow reference, and its laws."""

from itertools import permutations

import pytest
import torch

from aepo_lightning.advantages import GroupZScore, RootBaseline
from aepo_lightning.contracts.objective import Credit, RewardGroup
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.errors import ConfigError
from aepo_lightning.training.group_rows import GroupRows
from tests.support.branched import grow

P, T = SegmentSource.POLICY, SegmentSource.TOOL


def chain(*end):
    """One turn and a tool result, then a reward or branches."""
    return [(P, [5]), (T, [6]), *end]


def answer(reward):
    return [(P, [7, 8]), reward]


def group_of(roots, num_global):
    tree = grow(roots)
    tree.global_budget = num_global
    return GroupRows(advantage_estimator=GroupZScore(), leaf_weights="inverse_fan_out").group_of(tree)


BRANCHED = [chain([answer(1.0), answer(0.0)]), answer(0.5), answer(0.25)]
"""A root chain of two leaves, one without branches, and, with m = 2, a top-up."""


def advantages(roots, num_global, **fields):
    group = group_of(roots, num_global)
    rows = RootBaseline(**fields)(group, group.rewards)
    assert all(len(set(row)) == 1 for row in rows)
    return group, [row[0] for row in rows]


def test_by_hand():
    # Values: root 0 (1 + 0) / 2 = 0.5, root 1 0.5. Three root chains for m = 2: 1.5 times the differences.
    # Leaves of root 0 against root 1: 1 - 0.5, 0 - 0.5. Root 1 against root 0: 0. The top-up against both: 0.25 - 0.5.
    group, found = advantages(BRANCHED, 2)
    assert isinstance(RootBaseline(), Credit)
    assert found == pytest.approx([0.75, -0.75, 0.0, -0.375])
    # With weights 2/3, 2/3, 4/3, 4/3: four leaves divided among three root chains.
    assert group.weights.tolist() == pytest.approx([2 / 3, 2 / 3, 4 / 3, 4 / 3])


def test_top_ups_left_out_have_no_advantage():
    assert advantages(BRANCHED, 2, top_ups="leave_out")[1] == pytest.approx([0.75, -0.75, 0.0, 0.0])


def test_every_turn_of_a_trajectory_has_its_advantage():
    group = group_of(BRANCHED, 2)
    assert [len(row) for row in RootBaseline()(group, group.rewards)] == [2, 2, 1, 1]


def test_a_single_global_sample_has_nothing_to_be_compared_with():
    # m = 1: rewards as they are, and the top-up against the one root chain; two root chains for m = 1.
    assert advantages([answer(1.0), answer(0.25)], 1)[1] == pytest.approx([2.0, -1.5])


@pytest.mark.parametrize("num_global", [2, 3])
def test_is_the_slow_reference(num_global):
    rewards = torch.rand(7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    a, b, c, d, e, f, g = rewards
    roots = [chain([answer(a), [(P, [9]), (T, [6]), [answer(b), answer(c)]]]), chain([answer(d), answer(e)]), answer(f)]
    roots.append(answer(g))
    values = [a / 2 + (b + c) / 4, (d + e) / 2, f, g]
    leaves = [(0, a), (0, b), (0, c), (1, d), (1, e), (2, f), (3, g)]
    expected = {}
    for root, reward in leaves:
        others = [values[other] for other in range(num_global) if other != root]
        expected[reward] = 4 / num_global * (reward - sum(others) / len(others))
    group, found = advantages(roots, num_global)
    for reward, advantage in zip(group.rewards.tolist(), found, strict=True):
        (match,) = [value for known, value in expected.items() if known == pytest.approx(reward, abs=1e-6)]
        assert advantage == pytest.approx(match, abs=1e-6)


def test_a_constant_added_to_all_rewards_changes_nothing():
    shifted = [chain([answer(4.0), answer(3.0)]), answer(3.5), answer(3.25)]
    assert advantages(shifted, 2)[1] == pytest.approx(advantages(BRANCHED, 2)[1], abs=1e-6)


def test_without_branches_and_top_ups_it_is_leave_one_out_in_any_order():
    for rewards in permutations([0.0, 0.5, 1.0]):
        found = advantages([answer(reward) for reward in rewards], 3)[1]
        assert found == pytest.approx([1.5 * (reward - 0.5) for reward in rewards])  # n / (n - 1) times the centred


def test_a_group_without_a_scored_global_sample_has_no_advantage():
    group = group_of(BRANCHED, 2)
    top_up = RewardGroup(tree=group.tree, leaves=group.leaves[3:], rewards=group.rewards[3:], weights=group.weights[3:])
    assert RootBaseline()(top_up, top_up.rewards) == [[0.0]]


def test_an_unknown_word_is_refused(without_type_checks):
    with pytest.raises(ConfigError, match="`top_ups` must be 'count' or 'leave_out', but got 'drop'"):
        RootBaseline(top_ups="drop")
