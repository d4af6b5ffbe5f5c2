import math

import pytest
import torch

from aepo_lightning.advantages import FirstBranch, NodeValue
from aepo_lightning.contracts.objective import Credit
from tests.support.branched import grow
from tests.support.groups import by_path, group_of, random_group
from tests.support.training import policy_turn, tool_turn

START = [policy_turn(5), tool_turn(6)]


def forked():
    """One chain whose second turn forks in two, the second of them again; and one alone."""
    later = [policy_turn(8, 20), tool_turn(9), [[policy_turn(10), 1.0], [policy_turn(11), 4.0]]]
    return group_of(grow([[*START, [[policy_turn(7), -2.0], later]], [policy_turn(12), 3.0]]))


def credit_of(part, group):
    return by_path(group.tree, part(group, group.rewards))


FIRST, SECOND, THIRD, ALONE = ("r", 0), ("r", 0, "b", 1, 0), ("r", 0, "b", 1, 0, "b", 2, 0), ("r", 1)


@pytest.mark.parametrize(
    ("part", "first", "second", "third"),
    [
        # Shared turn (-2 + 1 + 4) / 3, the later one (1 + 4) / 2.
        (NodeValue(), [1.0, -2.0], [1.0, 2.5, 1.0], [1.0, 2.5, 4.0]),
        # The prompt is worth (-2 + 1 + 4 + 3) / 4 = 1.5.
        (NodeValue(baseline="parent"), [-0.5, -3.0], [-0.5, 1.5, -1.5], [-0.5, 1.5, 1.5]),
        # Shared turn (-2 + 2.5) / 2, the prompt (0.25 + 3) / 2.
        (NodeValue(average="children"), [0.25, -2.0], [0.25, 2.5, 1.0], [0.25, 2.5, 4.0]),
        (
            NodeValue(average="children", baseline="parent"),
            [-1.375, -2.25],
            [-1.375, 2.25, -1.5],
            [-1.375, 2.25, 1.5],
        ),
    ],
)
def test_values_by_hand(part, first, second, third):
    found = credit_of(part, forked())
    assert found[FIRST] == pytest.approx(first)
    assert found[SECOND] == pytest.approx(second)
    assert found[THIRD] == pytest.approx(third)


def test_children_weigh_by_how_surprising_they_were():
    # Mean -log p: 0.7 of the turn 7, 1.4 of the turn (8, 20); 1.0 of 10, 1.1 of 11.
    low, high = math.exp(1.0), math.exp(1.1)
    later = (low * 1.0 + high * 4.0) / (low + high)
    first, second = math.exp(0.7), math.exp(1.4)
    found = credit_of(NodeValue(average="entropy"), forked())
    assert found[SECOND][:2] == pytest.approx([(first * -2.0 + second * later) / (first + second), later])


def reference(group, average, advantages):
    """Values by the definition, from the top down and without any shared work."""
    weights = group.weights.tolist()

    def value(prefix):
        """Of the node that a list of segment numbers leads to."""
        below = [i for i, turns in enumerate(group.turns) if [t.segment_id for t in turns][: len(prefix)] == prefix]
        if average == "leaves":
            return sum(weights[i] * advantages[i] for i in below) / sum(weights[i] for i in below)
        found = [(0.0, advantages[i]) for i in below if len(group.turns[i]) == len(prefix)]
        for number in {group.turns[i][len(prefix)].segment_id for i in below if len(group.turns[i]) > len(prefix)}:
            logprobs = group.tree.segments[number].logprobs
            score = -sum(logprobs) / len(logprobs) if average == "entropy" else 0.0
            found.append((score, value([*prefix, number])))
        return sum(math.exp(s) * v for s, v in found) / sum(math.exp(s) for s, _ in found)

    paths = [[turn.segment_id for turn in turns] for turns in group.turns]
    return [[value(path[: depth + 1]) for depth in range(len(path))] for path in paths], value([])


@pytest.mark.parametrize("average", ["leaves", "children", "entropy"])
@pytest.mark.parametrize(("seed", "mode"), [(1, "uniform"), (3, "inverse_fan_out"), (6, "inverse_fan_out")])
def test_values_equal_the_definition(average, seed, mode):
    group = random_group(seed, mode)
    assert len({turn.segment_id for turns in group.turns for turn in turns}) < sum(map(len, group.turns))
    advantages = (group.rewards - group.rewards.mean()).tolist()
    expected, prompt = reference(group, average, advantages)
    found = NodeValue(average=average)(group, torch.tensor(advantages, dtype=torch.float64))
    differences = NodeValue(average=average, baseline="parent")(group, torch.tensor(advantages, dtype=torch.float64))
    for row, wanted, difference in zip(found, expected, differences, strict=True):
        assert row == pytest.approx(wanted, abs=1e-12)
        steps = [own - above for above, own in zip([prompt, *wanted], wanted, strict=False)]
        assert difference == pytest.approx(steps, abs=1e-12)


@pytest.mark.parametrize("mode", ["uniform", "inverse_fan_out"])
@pytest.mark.parametrize("part", [NodeValue(), FirstBranch()], ids=["mean", "first"])
def test_what_a_turn_gets_from_all_its_trajectories(mode, part):
    # The mean leaves the sum over the copies of a turn as it was; the first branch is the only one of them.
    group = random_group(3, mode)
    credit, values = part(group, group.rewards), group.rewards.tolist()
    for turn in {turn.segment_id: turn for turns in group.turns for turn in turns}.values():
        places = [(i, turns.index(turn)) for i, turns in enumerate(group.turns) if turn in turns]
        total = sum(float(group.weights[i]) * credit[i][place] for i, place in places)
        if isinstance(part, NodeValue):
            assert total == pytest.approx(sum(float(group.weights[i]) * values[i] for i, _ in places))
        else:
            owner = min(places, key=lambda place: len(group.leaves[place[0]].seed_path))
            assert [credit[i][place] for i, place in places if (i, place) != owner] == [0.0] * (len(places) - 1)
            assert credit[owner[0]][owner[1]] == values[owner[0]]


def test_the_first_branch_trains_the_turns_that_it_shares():
    found = credit_of(FirstBranch(), forked())
    assert found == {FIRST: [-2.0, -2.0], SECOND: [0.0, 1.0, 1.0], THIRD: [0.0, 0.0, 4.0], ALONE: [3.0]}


def test_where_the_chain_has_no_reward_the_next_takes_its_place():
    group = forked()
    left = group.leaves[1:]
    less = type(group)(tree=group.tree, leaves=left, rewards=group.rewards[1:], weights=group.weights[1:])
    found = dict(zip((leaf.seed_path for leaf in left), FirstBranch()(less, less.rewards), strict=True))
    assert found == {SECOND: [1.0, 1.0, 1.0], THIRD: [0.0, 0.0, 4.0], ALONE: [3.0]}


def test_without_branches_every_turn_has_the_advantage_of_its_trajectory():
    group = group_of(grow([[*START, policy_turn(7), 1.0], [policy_turn(8), 0.0], [2.0]]))
    for part in (NodeValue(), NodeValue(average="entropy"), FirstBranch()):
        assert part(group, group.rewards) == [[1.0, 1.0], [0.0], []]
        assert isinstance(part, Credit)


def test_weights_of_zero_are_worth_nothing():
    group = group_of(grow([[policy_turn(7), 1.0]]), weights=[0.0])
    assert NodeValue()(group, group.rewards) == [[0.0]]


@pytest.mark.parametrize(("name", "message"), [("average", "must be 'leaves'"), ("baseline", "must be 'none'")])
def test_unknown_words_are_refused(name, message):
    part = NodeValue()
    object.__setattr__(part, name, "sum")
    with pytest.raises(ValueError, match=f"`{name}` {message}.*, but got 'sum'"):
        part.__post_init__()
