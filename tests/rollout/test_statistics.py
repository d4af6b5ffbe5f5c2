"""Trees in numbers: a tree small enough to count by hand, and pass@k against all subsets."""

import itertools
import math

import pytest

from aepo_lightning.rollout import Tally, pass_at_k, pass_rates, summarise_trees
from aepo_lightning.tree import Leaf, RolloutTree
from aepo_lightning.types import LeafOrigin, RewardOutput, SegmentSource, StopReason, ToolCall, ToolResult, ToolStatus
from tests.builders import RecordingBranchPolicy, ScriptedEngine, grow, make_question, random_script


def reward(value, is_correct=False, is_well_formed=True, f1=0.0):
    return RewardOutput(reward=value, is_correct=is_correct, is_well_formed=is_well_formed, f1=f1)


def policy(tree, parent, entropies):
    tokens = list(range(len(entropies)))
    fields = {"logprobs": [-1.0] * len(tokens), "entropies": entropies}
    return tree.add(parent, SegmentSource.POLICY, tokens, **fields).segment_id


def tool(tree, parent, num_tokens, status, duration_s):
    result = ToolResult(text="x", status=status, duration_s=duration_s)
    call = ToolCall(tool="search", text="q")
    tokens = [9] * num_tokens
    return tree.add(parent, SegmentSource.TOOL, tokens, tool_call=call, tool_result=result).segment_id


def leaf(segment_id, origin, path, stop_reason=StopReason.EOS, num_tool_calls=0, reward=None):
    return Leaf(
        segment_id=segment_id,
        origin=origin,
        stop_reason=stop_reason,
        seed_path=path,
        num_tool_calls=num_tool_calls,
        reward=reward,
    )


def hand_tree():
    """Prompt (4) - turn (2) - tool (3) - turn (3) or, as a branch, turn (1); a top-up of one turn (2)."""
    tree = RolloutTree(question=make_question(), global_budget=1, branch_budget=2, root_entropy=0.5)
    tree.add(None, SegmentSource.PROMPT, [1, 2, 3, 4])
    first = policy(tree, 0, [1.0, 3.0])
    result = tool(tree, first, 3, ToolStatus.OK, 0.25)
    trunk = policy(tree, result, [2.0, 2.0, 5.0])
    branch = policy(tree, result, [6.0])
    top_up = policy(tree, 0, [0.0, 1.0])
    tree.tool_entropies, tree.branch_depths, tree.branch_roots = [3.0], [1], [0]
    tree.leaves = [
        leaf(trunk, LeafOrigin.PROBE, ("r", 0), num_tool_calls=1, reward=reward(1.0, is_correct=True, f1=1.0)),
        leaf(branch, LeafOrigin.BRANCH, ("r", 0, "b", 1, 0), StopReason.CALL_LIMIT, 1, reward(0.5, f1=0.5)),
        leaf(top_up, LeafOrigin.TOP_UP, ("r", 1), StopReason.LENGTH, reward=reward(-1.0, is_well_formed=False)),
    ]
    return tree


def test_a_tree_counted_by_hand():
    means = summarise_trees([hand_tree()]).means()
    assert means == pytest.approx(
        {
            "zero_variance_groups_fraction": 0,
            "reward": 0.5 / 3,  # 1 + 0.5 - 1 over three leaves
            "f1": 1.5 / 3,
            "correct_fraction": 1 / 3,
            "format_error_fraction": 1 / 3,
            "truncated_fraction": 1 / 3,
            "call_limit_fraction": 1 / 3,
            "num_tool_calls": 2 / 3,
            "trunk_reward": 0.0,  # (1 - 1) / 2
            "branch_reward": 0.5,
            "global_budget": 1,
            "num_branches": 1,
            "num_top_ups": 1,
            "root_entropy": 0.5,
            "tool_entropy": 3.0,
            "branch_concentration": 1.0,
            "branch_depth": 1.0,
            "generated_token_fraction": 8 / 10,  # 2 + 3 + 1 + 2 sampled once; 5 + 3 + 2 in trajectories
            "response_length": (8 + 6 + 2) / 3,  # tool tokens included
            "entropy": 20 / 8,  # 1 + 3 + 2 + 2 + 5 + 6 + 0 + 1 over 8 tokens
            "entropy_after_tool": 15 / 4,  # 2 + 2 + 5 + 6
            "tool_ok_fraction": 1.0,
            "tool_duration_s": 0.25,
        }
    )


def test_entropy_after_a_tool_looks_at_twenty_tokens():
    tree = RolloutTree(question=make_question(), global_budget=1)
    tree.add(None, SegmentSource.PROMPT, [1])
    turn = policy(tree, 0, [1.0])
    turn = policy(tree, tool(tree, turn, 1, ToolStatus.ERROR, 1.0), [2.0] * 20 + [100.0] * 5)
    tree.leaves = [leaf(turn, LeafOrigin.ROOT, ("r", 0), reward=reward(0.0))]
    means = summarise_trees([tree]).means()
    assert means["entropy_after_tool"] == 2.0
    assert means["tool_ok_fraction"] == 0.0
    assert means["zero_variance_groups_fraction"] == 1.0


def test_branch_concentration_is_the_share_of_the_three_busiest_roots():
    tree = hand_tree()
    tree.branch_roots = [0, 0, 0, 1, 1, 2, 3, 4]
    tree.branch_depths = [1] * 8
    assert summarise_trees([tree]).means()["branch_concentration"] == 6 / 8


def test_a_discarded_probe_shows_in_the_tokens():
    tree = hand_tree()
    tree.num_discarded_tokens = 4
    assert summarise_trees([tree]).means()["generated_token_fraction"] == 12 / 10


def test_an_unscored_leaf_is_an_error():
    tree = hand_tree()
    tree.leaves[1].reward = None
    with pytest.raises(ValueError, match="Every leaf of question 'q' must be scored first"):
        summarise_trees([tree])


def test_no_trees_have_no_means():
    assert summarise_trees([]).means() == {}


def test_batches_add_up():
    trees = grow(
        ScriptedEngine(random_script()),
        [make_question(f"q{index}") for index in range(5)],
        branch_policy=RecordingBranchPolicy(),
    )
    whole, left, right = summarise_trees(trees), summarise_trees(trees[:2]), summarise_trees(trees[2:])
    for name in whole.totals:
        total = left.totals.get(name, 0) + right.totals.get(name, 0)
        weight = left.weights.get(name, 0) + right.weights.get(name, 0)
        assert (whole.totals[name], whole.weights[name]) == pytest.approx((total, weight))


def test_a_tally_weighs_observations():
    tally = Tally()
    tally.add("x", 1.0)
    tally.add("x", 4.0, weight=2.0)
    tally.share("empty", 0, 0)
    assert tally.means() == {"x": 3.0}  # (1 + 2 * 4) / 3


@pytest.mark.parametrize(
    ("num_correct", "num_samples", "k", "expected"),
    [
        (1, 4, 1, 0.25),
        (1, 4, 2, 0.5),  # 3 of the 6 pairs hold the correct one
        (2, 4, 2, 5 / 6),  # one of the 6 pairs misses both
        (0, 5, 3, 0.0),
        (5, 5, 1, 1.0),
        (3, 5, 3, 1.0),  # only two are wrong
    ],
)
def test_pass_at_k_by_hand(num_correct, num_samples, k, expected):
    assert pass_at_k(num_correct, num_samples, k) == pytest.approx(expected)


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(num_samples):
    for num_correct, k in itertools.product(range(num_samples + 1), range(1, num_samples + 1)):
        subsets = list(itertools.combinations([True] * num_correct + [False] * (num_samples - num_correct), k))
        assert pass_at_k(num_correct, num_samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_does_not_overflow():
    expected = 1 - math.exp(math.lgamma(901) + math.lgamma(901) - math.lgamma(801) - math.lgamma(1001))
    assert pass_at_k(100, 1000, 100) == pytest.approx(expected, rel=1e-9)  # lgamma cancels ten digits


@pytest.mark.parametrize(("num_correct", "num_samples", "k"), [(-1, 4, 1), (5, 4, 1), (2, 4, 0), (2, 4, 5), (0, 0, 1)])
def test_counts_that_cannot_be_are_refused(num_correct, num_samples, k):
    with pytest.raises(ValueError, match="`num_correct` and `k` must satisfy"):
        pass_at_k(num_correct, num_samples, k)


def test_pass_rates_average_over_questions():
    tree, other = hand_tree(), hand_tree()
    other.leaves[1].reward = reward(1.0, is_correct=True)
    # 1 of 3 and 2 of 3 correct: pass@1 1/3 and 2/3; pass@2 is 2 of 3 pairs, and all of them.
    assert pass_rates([tree, other], [1, 2]) == pytest.approx({"pass@1": 0.5, "pass@2": (2 / 3 + 1) / 2})
