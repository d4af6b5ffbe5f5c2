"""Trees in numbers: a tree small enough to count by hand, and pass@k against all subsets."""

import itertools
import math
from dataclasses import replace

import pytest

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree
from aepo_lightning.rollout import Tally, pass_at_k, pass_rates, summarise_trees
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from tests.support.builders import RecordingBranchPolicy, ScriptedEngine, grow, make_question, random_script


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


def decision(path, turn, entropy=1.0, num_opened=0, is_penalised=False, num_wanted=None):
    """One decision of a chain whose initial entropy is 0.5, which opened what it asked for if nothing else is said."""
    return BranchDecision(
        seed_path=path,
        root=path[1],
        turn=turn,
        entropy=entropy,
        initial_entropy=0.5,
        consecutive_branches=0,
        num_wanted=num_opened if num_wanted is None else num_wanted,
        num_opened=num_opened,
        is_penalised=is_penalised,
    )


def means_of(decisions):
    tree = hand_tree()
    tree.decisions = decisions
    return summarise_trees([tree]).means()


def hand_tree():
    """Prompt (4) - turn (2) - tool (3) - turn (3) or, as a branch, turn (1); a top-up of one turn (2)."""
    tree = RolloutTree(question=make_question(), global_budget=1, branch_budget=2, root_entropy=0.5)
    tree.add(None, SegmentSource.PROMPT, [1, 2, 3, 4])
    first = policy(tree, 0, [1.0, 3.0])
    result = tool(tree, first, 3, ToolStatus.OK, 0.25)
    tree.segments[result].is_branch_point = True
    trunk = policy(tree, result, [2.0, 2.0, 5.0])
    branch = policy(tree, result, [6.0])
    top_up = policy(tree, 0, [0.0, 1.0])
    tree.tool_entropies, tree.decisions = [3.0], [decision(("r", 0), 1, num_opened=1)]
    tree.num_prompt_tokens, tree.num_cached_tokens = 4 + 9 + 9 + 4, 8 + 4
    tree.leaves = [
        leaf(trunk, LeafOrigin.PROBE, ("r", 0), num_tool_calls=1, reward=reward(1.0, is_correct=True, f1=1.0)),
        leaf(branch, LeafOrigin.BRANCH, ("r", 0, "b", 1, 0), StopReason.CALL_LIMIT, 1, reward(0.5, f1=0.5)),
        leaf(top_up, LeafOrigin.TOP_UP, ("r", 1), StopReason.LENGTH, reward=reward(-1.0, is_well_formed=False)),
    ]
    return tree


def test_trajectories_with_the_same_calls_and_other_answers_act_differently():
    tree = hand_tree()
    tree.leaves[1].reward = replace(tree.leaves[1].reward, answer="other")
    assert summarise_trees([tree]).means()["num_distinct_actions"] == 3


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
            "timed_out_fraction": 0.0,
            "malformed_end_fraction": 0.0,
            "num_tool_calls": 2 / 3,
            "trunk_reward": 0.0,  # (1 - 1) / 2
            "branch_reward": 0.5,
            "global_budget": 1,
            "branch_budget": 2,
            "num_branches": 1,
            "num_top_ups": 1,
            "unscored_fraction": 0.0,
            "failed_reward_fraction": 0.0,
            "failed_tools_fraction": 0.0,
            "root_entropy": 0.5,
            "tool_entropy": 3.0,
            "branch_concentration": 1.0,
            "expected_branch_concentration": 1.0,  # one root
            "branch_concentration_over_chance": 1.0,
            "branch_reward_lift": 0.5 - 1.0,  # the only decision was taken by the chain that earned 1
            "branch_rate": 1.0,
            # (1 - 0.5)^2 / 2 = 0.125 below the branch point; 1, 0.5 and -1 have the unbiased variance 13 / 12
            "sibling_reward_spread": 0.125 / (13 / 12),
            "num_distinct_actions": 2,  # one call and no answer, twice; no call
            "num_distinct_trajectories": 3,
            "branches_at_depth_1_fraction": 1.0,
            "branches_at_depth_1_over_chance": 1.0,  # the only decision asked for a branch
            "branches_at_depth_2_fraction": 0.0,
            "branches_at_depth_3_fraction": 0.0,
            "branches_deeper_fraction": 0.0,
            "high_entropy_fraction": 1.0,  # 1.0 > 0.5
            "consecutive_high_entropy_fraction": 0.0,  # the only decision has no neighbour
            "branch_refused_fraction": 0.0,
            "penalised_fraction": 0.0,
            "generated_token_fraction": 8 / 10,  # 2 + 3 + 1 + 2 sampled once; 5 + 3 + 2 in trajectories
            "prefix_cache_hit_fraction": 12 / 26,
            "response_length": (8 + 6 + 2) / 3,  # tool tokens included
            "entropy": 20 / 8,  # 1 + 3 + 2 + 2 + 5 + 6 + 0 + 1 over 8 tokens
            "entropy_after_tool": 15 / 4,  # 2 + 2 + 5 + 6
            "entropy_after_ok": 15 / 4,
            **{f"tool_{status}_fraction": float(status is ToolStatus.OK) for status in ToolStatus},
            "tool_cached_fraction": 0.0,
            "tool_shared_fraction": 0.0,
            "tool_duration_s": 0.25,
            "tool_queue_s": 0.0,
            "tool_attempts": 1.0,
        }
    )


def test_a_turn_counts_once_for_each_status_among_the_results_before_it():
    tree = RolloutTree(question=make_question(), global_budget=1)
    tree.add(None, SegmentSource.PROMPT, [1])
    turn = policy(tree, 0, [1.0])
    results = turn
    for status in (ToolStatus.OK, ToolStatus.TIMEOUT, ToolStatus.OK):
        results = tool(tree, results, 1, status, 1.0)
    turn = policy(tree, results, [2.0, 4.0])
    turn = policy(tree, tool(tree, turn, 1, ToolStatus.OK, 1.0), [6.0])
    tree.leaves = [leaf(turn, LeafOrigin.ROOT, ("r", 0), reward=reward(0.0))]
    means = summarise_trees([tree]).means()
    assert means["entropy_after_tool"] == means["entropy_after_ok"] == 4.0  # 2 + 4 + 6, each once
    assert means["entropy_after_timeout"] == 3.0


def test_samples_hold_every_entropy_and_duration():
    tally = summarise_trees([hand_tree(), hand_tree()])
    assert sorted(tally.samples["entropy_p{}"]) == sorted([1.0, 3.0, 2.0, 2.0, 5.0, 6.0, 0.0, 1.0] * 2)
    assert tally.samples["tool_duration_p{}_s"] == [0.25] * 2


@pytest.mark.parametrize(("turn_entropy", "num_first"), [(None, 20), (TurnEntropy(num_tokens=7), 7)], ids=repr)
def test_entropy_after_a_tool_looks_at_the_first_tokens_of_the_setting(turn_entropy, num_first):
    tree = RolloutTree(question=make_question(), global_budget=1)
    tree.add(None, SegmentSource.PROMPT, [1])
    turn = policy(tree, 0, [1.0])
    turn = policy(tree, tool(tree, turn, 1, ToolStatus.ERROR, 1.0), [2.0] * num_first + [100.0] * 5)
    tree.leaves = [leaf(turn, LeafOrigin.ROOT, ("r", 0), reward=reward(0.0))]
    means = summarise_trees([tree], turn_entropy).means()
    assert means["entropy_after_tool"] == means["entropy_after_error"] == 2.0
    assert "entropy_after_ok" not in means
    assert means["tool_ok_fraction"] == 0.0
    assert means["zero_variance_groups_fraction"] == 1.0


def test_branch_concentration_is_the_share_of_the_three_busiest_roots():
    branches = {0: 3, 1: 2, 2: 1, 3: 1, 4: 1}  # by root
    means = means_of([decision(("r", root), 1, num_opened=number) for root, number in branches.items()])
    assert means["branch_concentration"] == 6 / 8


def test_shares_of_branches_by_depth_add_up_to_one():
    branches = {1: 4, 2: 1, 3: 0, 4: 2, 9: 1}  # by depth
    means = means_of([decision(("r", 0), turn, num_opened=number) for turn, number in branches.items()])
    assert means["branches_at_depth_1_fraction"] == 4 / 8
    assert means["branches_at_depth_2_fraction"] == 1 / 8
    assert means["branches_at_depth_3_fraction"] == 0
    assert means["branches_deeper_fraction"] == 3 / 8


def test_the_share_of_penalised_decisions():
    decisions = [decision(("r", 0), turn, is_penalised=turn == 2) for turn in (1, 2, 3, 4)]
    assert means_of(decisions)["penalised_fraction"] == 1 / 4


@pytest.mark.parametrize(
    ("high_turns", "num_in_runs"),
    [
        pytest.param([1, 2, 4, 6, 7, 8], 5, id="runs of two and three, and one alone"),
        pytest.param([1, 3, 5, 7], 0, id="never in a row"),
        pytest.param([], 0, id="never high"),
        pytest.param([1, 2, 3, 4, 5, 6, 7, 8], 8, id="always high"),
    ],
)
def test_consecutive_high_entropy_turns_have_a_high_neighbour_on_their_chain(high_turns, num_in_runs):
    means = means_of([decision(("r", 0), turn, float(turn in high_turns)) for turn in range(1, 9)])
    assert means["consecutive_high_entropy_fraction"] == num_in_runs / 8
    assert means["high_entropy_fraction"] == len(high_turns) / 8


def test_an_entropy_equal_to_that_at_the_start_is_not_high():
    assert means_of([decision(("r", 0), 1, entropy=0.5)])["high_entropy_fraction"] == 0


def test_neighbours_on_different_chains_do_not_count():
    means = means_of([decision(("r", 0), 1), decision(("r", 1), 2), decision(("r", 1, "b", 2, 0), 4)])
    assert means["consecutive_high_entropy_fraction"] == 0


def test_the_chain_of_a_branch_begins_with_its_trunk():
    trunk, branch = ("r", 0), ("r", 0, "b", 2, 1)
    low, high = 0.0, 1.0
    decisions = [
        decision(trunk, 1, low),
        decision(trunk, 2, high, num_opened=2),
        decision(trunk, 3, low),  # after the branch point the two chains differ
        decision(branch, 3, high),  # directly after the trunk's decision at 2
        decision(branch, 4, low),
        decision((*branch, "b", 4, 0), 5, high),  # directly after the branch's decision at 4, which is low
    ]
    assert means_of(decisions)["consecutive_high_entropy_fraction"] == 2 / 6


def test_a_group_whose_chains_called_no_tool_has_no_shares_of_decisions():
    means = means_of([])
    names = {"branch_concentration", "penalised_fraction", "consecutive_high_entropy_fraction"}
    assert not names & set(means)


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


def without_reward(tree, *places):
    for place in places:
        # What was found before a tool's failure was seen stays in the output.
        tree.leaves[place].reward = RewardOutput(reward=1.0, is_correct=True, is_well_formed=True, is_scored=False)
    return tree


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ((0,), {"pass@1": 0.0, "pass@2": 0.0}),  # the right one is gone: 0 of 2
        ((1,), {"pass@1": 1 / 2, "pass@2": 1.0}),  # 1 of 2
        ((0, 1), {"pass@1": 0.0}),  # one sample says nothing about two
        ((0, 1, 2), {}),
    ],
)
def test_pass_rates_do_not_count_samples_without_a_reward(places, expected):
    tree = hand_tree()
    for place, output in enumerate([reward(1.0, is_correct=True), reward(0.0), reward(0.0)]):
        tree.leaves[place].reward = output
    assert pass_rates([without_reward(tree, *places)], [1, 2, 3]) == pytest.approx(expected)


def test_groups_without_any_reward_are_in_no_figure_of_rewards():
    scored, masked = hand_tree(), without_reward(hand_tree(), 0, 1, 2)
    alone, both = summarise_trees([scored]).means(), summarise_trees([scored, masked]).means()
    names = ["reward", "f1", "correct_fraction", "format_error_fraction", "trunk_reward", "branch_reward"]
    names += ["zero_variance_groups_fraction", "sibling_reward_spread"]
    assert {name: alone.get(name) for name in names} == {name: both.get(name) for name in names}
    assert both["unscored_fraction"] == 0.5


def test_terms_of_a_reward_are_means_over_the_trajectories_that_have_one():
    tree = hand_tree()
    for place, terms in enumerate([{"answer": 1.0, "length": -0.5}, {"answer": 0.0, "length": -0.1}, {"answer": 9.0}]):
        tree.leaves[place].reward = replace(tree.leaves[place].reward, terms=terms, is_scored=place < 2)
    means = summarise_trees([tree]).means()
    assert (means["reward_answer"], means["reward_length"]) == pytest.approx((0.5, -0.3))


@pytest.mark.parametrize(
    ("status", "is_program_timeout", "expected"),
    [
        (ToolStatus.UNAVAILABLE, False, 2 / 3),  # the first two leaves share the result
        (ToolStatus.BUSY, False, 2 / 3),
        (ToolStatus.TIMEOUT, False, 2 / 3),
        (ToolStatus.TIMEOUT, True, 0.0),
        (ToolStatus.ERROR, False, 0.0),
    ],
)
def test_trajectories_with_failed_tools_and_failed_rewards_are_counted(status, is_program_timeout, expected):
    tree = hand_tree()
    (answered,) = (segment for segment in tree.segments if segment.tool_result is not None)
    answered.tool_result = replace(answered.tool_result, status=status, is_program_timeout=is_program_timeout)
    tree.leaves[2].reward = replace(tree.leaves[2].reward, has_failed=True)
    means = summarise_trees([tree]).means()
    assert means["failed_tools_fraction"] == pytest.approx(expected)
    assert means["failed_reward_fraction"] == pytest.approx(1 / 3)
