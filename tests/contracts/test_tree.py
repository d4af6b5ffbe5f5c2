"""The rollout tree: a trajectory is its path, token for token, and shared tokens are stored once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.contracts.tree import Leaf, LeafOrigin, RolloutTree, UnusedCall
from tests.support.branched import grow
from tests.support.builders import make_question
from tests.support.training import policy_turn, tool_turn

SCORED = RewardOutput(reward=0.5, is_correct=False, is_well_formed=True)


def make_tree():
    return RolloutTree(question=make_question())


def add(tree, parent, source, tokens):
    fields = {}
    if source is SegmentSource.POLICY:
        fields = {"logprobs": [-token / 10 for token in tokens], "entropies": [token / 100 for token in tokens]}
    return tree.add(parent, source, tokens, **fields)


def make_leaf(segment_id, path=("r", 0), reward=SCORED):
    return Leaf(
        segment_id=segment_id, origin=LeafOrigin.ROOT, stop_reason=StopReason.EOS, seed_path=path, reward=reward
    )


def small_tree():
    """Prompt 1 2 - policy 3 - tool 4 5 - policy 6, or policy 7 8."""
    tree = make_tree()
    add(tree, None, SegmentSource.PROMPT, [1, 2])
    add(tree, 0, SegmentSource.POLICY, [3])
    add(tree, 1, SegmentSource.TOOL, [4, 5])
    add(tree, 2, SegmentSource.POLICY, [6])
    add(tree, 2, SegmentSource.POLICY, [7, 8])
    tree.leaves = [make_leaf(3), make_leaf(4)]
    return tree


def test_a_trajectory_flattened_by_hand():
    first, second = small_tree().trajectories()
    assert first.token_ids == [1, 2, 3, 4, 5, 6]
    assert first.is_sampled == [False, False, True, False, False, True]
    assert first.logprobs == [0, 0, -0.3, 0, 0, -0.6]
    assert first.entropies == [0, 0, 0.03, 0, 0, 0.06]
    assert first.prompt_length == 2
    assert second.token_ids == [1, 2, 3, 4, 5, 7, 8]


def test_generated_tokens_are_counted_once_and_discarded_ones_too():
    tree = small_tree()
    assert tree.num_generated_tokens == 1 + 1 + 2
    tree.num_discarded_tokens = 5
    assert tree.num_generated_tokens == 9


def test_answered_calls_are_counted_once_and_unused_ones_too():
    tree = small_tree()
    call, result = ToolCall(tool="search", text="x"), ToolResult(text="y")
    tree.segments[2] = replace(tree.segments[2], tool_call=call, tool_result=result)
    assert tree.num_tool_calls == 1
    tree.unused_calls = [UnusedCall(seed_path=(0,), call_index=0, call=call, result=result)]
    assert tree.num_tool_calls == 2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from(["policy", "tool"]), st.lists(st.integers(0, 9), max_size=4)),
        max_size=15,
    ),
    st.lists(st.integers(0, 9), max_size=4),
)
def test_every_path_of_a_random_tree_equals_copies_of_its_tokens(steps, prompt):
    tree = make_tree()
    add(tree, None, SegmentSource.PROMPT, prompt)
    copies = [[(token, False) for token in prompt]]
    for parent, kind, tokens in steps:
        parent %= len(copies)
        segment = add(tree, parent, SegmentSource(kind), tokens)
        copies.append(copies[parent] + [(token, kind == "policy") for token in tokens])
        assert segment.segment_id == len(copies) - 1
        assert segment.end == len(copies[-1])
    for segment_id, copy in enumerate(copies):
        trajectory = tree.trajectory(make_leaf(segment_id))
        assert list(zip(trajectory.token_ids, trajectory.is_sampled, strict=True)) == copy
        assert trajectory.logprobs == [-token / 10 if own else 0 for token, own in copy]
        assert trajectory.entropies == [token / 100 if own else 0 for token, own in copy]
        assert trajectory.prompt_length == len(prompt)
        assert tree.token_ids(segment_id) == trajectory.token_ids
    own = sum(len(tokens) for _, kind, tokens in steps if kind == "policy")
    assert tree.num_generated_tokens == own


def test_path_runs_from_the_root():
    assert [segment.segment_id for segment in small_tree().path(4)] == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("parents", "match"),
    [
        ([0], "`parent_id` must be None for the first segment only, but got 0"),
        ([None, None], "`parent_id` must be None for the first segment only, but got None"),
        ([None, 1], "`parent_id` must name one of 1 segments, but got 1"),
        ([None, -1], "`parent_id` must name one of 1 segments, but got -1"),
    ],
    ids=["no_root", "two_roots", "too_large", "negative"],
)
def test_a_segment_needs_a_parent_that_exists(parents, match):
    tree = make_tree()
    for parent in parents[:-1]:
        add(tree, parent, SegmentSource.PROMPT, [1])
    with pytest.raises(ValueError, match=match):
        add(tree, parents[-1], SegmentSource.PROMPT, [1])


@pytest.mark.parametrize(
    "fields",
    [{}, {"logprobs": [0.0], "entropies": [0.0, 0.0]}, {"logprobs": [0.0, 0.0]}],
    ids=["none", "too_few", "no_entropies"],
)
def test_a_policy_segment_needs_a_number_for_each_token(fields):
    tree = make_tree()
    add(tree, None, SegmentSource.PROMPT, [1])
    with pytest.raises(ValueError, match="A policy segment of 2 tokens must have as many `logprobs` and `entropies`"):
        tree.add(0, SegmentSource.POLICY, [1, 2], **fields)
    assert len(tree.segments) == 1


def test_rewards_are_those_of_the_leaves_in_order():
    tree = small_tree()
    tree.leaves[1].reward = RewardOutput(reward=-1.0, is_correct=False, is_well_formed=False)
    assert tree.rewards == [0.5, -1.0]


def test_rewards_of_a_tree_that_is_not_scored_are_an_error():
    tree = small_tree()
    tree.leaves[0].reward = None
    with pytest.raises(ValueError, match="Every leaf of question 'q' must be scored first"):
        _ = tree.rewards


def test_leaf_weights_by_hand():
    #        prompt
    #   r0 --/    \-- r1 (alone)
    #   three chains go on: two end, the third forks into two.
    fork = [policy_turn(8), tool_turn(9), [[policy_turn(10), 1.0], [policy_turn(11), 0.0]]]
    first = [policy_turn(5), tool_turn(6), [[policy_turn(7), 1.0], [policy_turn(7), 0.0], fork]]
    tree = grow([first, [policy_turn(12), 0.5]])
    assert tree.leaf_weights("uniform") == [1.0] * 5
    found = dict(zip((leaf.seed_path for leaf in tree.leaves), tree.leaf_weights("inverse_fan_out"), strict=True))
    assert found == {
        ("r", 0): pytest.approx(1 / 3),
        ("r", 0, "b", 1, 0): pytest.approx(1 / 3),
        ("r", 0, "b", 1, 1): pytest.approx(1 / 6),
        ("r", 0, "b", 1, 1, "b", 2, 0): pytest.approx(1 / 6),
        ("r", 1): 1.0,
    }
