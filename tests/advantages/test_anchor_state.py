import statistics

import pytest
import torch

from aepo_lightning.advantages import AnchorState
from aepo_lightning.contracts.objective import Credit
from aepo_lightning.contracts.tool import ToolCall
from tests.support.branched import grow
from tests.support.groups import group_of, random_group
from tests.support.training import policy_turn, tool_turn


def met():
    """Three independent chains; the results 9 of the first two are the same, and so are all prompts."""
    return grow(
        [
            [policy_turn(5), tool_turn(9), policy_turn(6), tool_turn(10), policy_turn(7), 1.0],
            [policy_turn(8), tool_turn(9), policy_turn(5), 0.0],
            [policy_turn(5), 0.5],
        ]
    )


def test_by_hand():
    group = group_of(met())
    # Returns from the prompt: 0.25, 0, 0.5, mean 0.25. After result 9: 0.5 and 0, mean 0.25. After result 10: alone.
    found = AnchorState(weight=2.0, discount=0.5)(group, torch.tensor([10.0, 20.0, 30.0]))
    assert found[0] == pytest.approx([10.0, 10.5, 10.0])
    assert found[1] == pytest.approx([19.5, 19.5])
    assert found[2] == pytest.approx([30.5])


def test_a_call_is_a_part_of_the_state_unless_results_alone_are():
    tree = met()
    for segment in tree.segments:
        if segment.token_ids == [9]:
            segment.tool_call = ToolCall(tool="search", text=f"after {segment.parent_id}")
    called, read = (AnchorState(anchor=anchor)(group_of(tree), torch.zeros(3)) for anchor in ("call", "observation"))
    assert called[0][1] == called[1][1] == 0.0
    assert read[0][1] == -read[1][1] != 0.0


def reference(group, part, advantages):
    """Step by step from the paper's text: sets of equal states, returns, differences from the mean of the set."""
    steps = []
    for index, leaf in enumerate(group.leaves):
        own, since = [], []
        for segment in group.tree.path(leaf.segment_id)[1:]:
            if segment.source == "tool":
                since.append(tuple(segment.token_ids))
            else:
                own.append((tuple(since), index))
                since = []
        rewards = [0.0] * (len(own) - 1) + [float(group.rewards[index])]
        for turn, (state, _) in enumerate(own):
            steps.append((index, state, sum(r * part.discount**j for j, r in enumerate(rewards[turn:]))))
    found = [[] for _ in group.leaves]
    for index, state, value in steps:
        same = [other for _, where, other in steps if where == state]
        step = value - statistics.fmean(same)
        if part.normalize_by_std:
            step = step / (statistics.stdev(same) + 1e-6) if len(same) > 1 else 0.0
        found[index].append(advantages[index] + part.weight * step)
    return found


@pytest.mark.parametrize("part", [AnchorState(), AnchorState(weight=0.5, discount=0.9, normalize_by_std=True)])
@pytest.mark.parametrize("seed", [1, 3, 7])
def test_equals_the_definition(part, seed):
    group = random_group(seed, num_roots=5)
    advantages = (group.rewards - group.rewards.mean()).tolist()
    found = part(group, torch.tensor(advantages, dtype=torch.float64))
    for row, wanted in zip(found, reference(group, part, advantages), strict=True):
        assert row == pytest.approx(wanted, abs=1e-12)
    assert isinstance(part, Credit)


def test_a_chain_that_is_there_twice_with_half_the_weight_counts_as_once():
    end = [policy_turn(6), 1.0]
    other = [policy_turn(8), tool_turn(9), policy_turn(5), 0.0]
    once = group_of(grow([[policy_turn(5), tool_turn(9), *end], other]))
    twice = group_of(grow([[policy_turn(5), tool_turn(9), [end, end]], other]), weights=[0.75, 0.75, 1.5])
    for part in (AnchorState(), AnchorState(normalize_by_std=True)):
        first, second = part(once, torch.zeros(2))
        assert part(twice, torch.zeros(3)) == [pytest.approx(first), pytest.approx(first), pytest.approx(second)]


def test_without_weight_the_advantage_stays():
    group = random_group(1)
    found = AnchorState(weight=0.0)(group, group.rewards)
    assert found == [[value] * len(turns) for value, turns in zip(group.rewards.tolist(), group.turns, strict=True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "`weight` must be 0 or positive, but got -1.0"),
        ({"discount": 0.0}, r"`discount` must be in \(0, 1\], but got 0.0"),
        ({"discount": 1.1}, r"`discount` must be in \(0, 1\], but got 1.1"),
    ],
)
def test_refuses_settings_without_meaning(changes, message):
    with pytest.raises(ValueError, match=message):
        AnchorState(**changes)


def test_refuses_an_unknown_anchor():
    part = AnchorState()
    object.__setattr__(part, "anchor", "state")
    with pytest.raises(ValueError, match="`anchor` must be 'call' or 'observation', but got 'state'"):
        part.__post_init__()
