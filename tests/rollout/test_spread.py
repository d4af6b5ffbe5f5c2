"""Where branches fell against chance, by all permutations; how far siblings differ, by hand."""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from aepo_lightning.branching import EntropyBalanced, RandomBranching
from aepo_lightning.budgets import RootShare
from aepo_lightning.rollout import summarise_trees
from aepo_lightning.rollout.spread import asked_in_a_row, branch_reward_lift, expected_concentration
from tests.rollout.test_statistics import decision, hand_tree, means_of
from tests.support.builders import RecordingBranchPolicy, ScriptedEngine, calls_then_answer, grow, make_question


def decisions(sizes, num_branches):
    """As many decisions of each root as `sizes` says; the first few opened a branch."""
    places = [(root, turn) for root, size in enumerate(sizes) for turn in range(1, size + 1)]
    return [decision(("r", root), turn, num_opened=int(i < num_branches)) for i, (root, turn) in enumerate(places)]


@pytest.mark.parametrize(
    ("sizes", "num_branches"), [((2, 1, 3, 1), 3), ((1, 1, 1, 1, 1), 4), ((4, 2), 2), ((3, 2, 2, 1), 5)], ids=str
)
def test_expected_concentration_is_the_mean_over_all_choices_of_decisions(sizes, num_branches):
    roots = [root for root, size in enumerate(sizes) for _ in range(size)]
    shares = [
        sum(sorted(Counter(choice).values())[-3:]) / num_branches
        for choice in itertools.combinations(roots, num_branches)
    ]
    found = expected_concentration(decisions(sizes, num_branches))
    assert found == pytest.approx(statistics.fmean(shares), abs=1e-12)


def test_expected_concentration_by_hand():
    # Two branches on four roots with a decision each: always on two roots, so the three busiest have both.
    assert expected_concentration(decisions((1, 1, 1, 1), 2)) == 1.0
    # Four branches on five roots with a decision each: one on each of four, of which the busiest three have 3.
    assert expected_concentration(decisions((1,) * 5, 4)) == 3 / 4
    assert expected_concentration(decisions((2, 2), 0)) == 0.0


def test_a_large_group_is_quick():
    # 32 roots with ten decisions each, 32 branches: chances are added up, choices not listed.
    assert 3 / 32 < expected_concentration(decisions((10,) * 32, 32)) < 0.5


def test_groups_count_by_their_branches():
    means = means_of([*decisions((1, 1, 1, 1, 1), 4), decision(("r", 9), 1)])
    # Four branches on six roots with a decision each.
    assert means["expected_branch_concentration"] == 3 / 4


def test_the_rule_asks_at_depths_against_how_often_it_asks_at_all():
    # Decisions at depths 1 1 1 2 2 3, of which two at depth 1 and one at depth 2 ask for a branch; the budget is spent
    # after the first.
    places = [(1, 1), (1, 1), (1, 0), (2, 1), (2, 0), (3, 0)]
    found = [decision(("r", i), turn, num_wanted=n, num_opened=int(not i)) for i, (turn, n) in enumerate(places)]
    means = means_of(found)
    assert means["branches_at_depth_1_over_chance"] == pytest.approx((2 / 3) / (3 / 6))
    assert means["branches_at_depth_2_over_chance"] == pytest.approx((1 / 2) / (3 / 6))
    assert means["branches_at_depth_3_over_chance"] == 0.0
    assert "branches_deeper_over_chance" not in means
    assert not any("asked" in name for name in means)
    assert not any("depth" in name and "chance" in name for name in means_of([decision(("r", 0), 1)]))


def test_decisions_after_one_that_opened_a_branch():
    # A chain with three decisions, a branch from its first with two of its own, and another chain with one.
    branch = ("r", 0, "b", 1, 0)
    places = [(("r", 0), 1), (("r", 0), 2), (("r", 0), 3), (branch, 2), (branch, 3), (("r", 1), 1)]
    found = [
        decision(path, turn, num_opened=int(i in (0, 1)), num_wanted=int(i in (0, 1, 3)))
        for i, (path, turn) in enumerate(places)
    ]
    # 0 and 1 opened one: 1 and 3 come after 0, 2 after 1. Of these, 1 and 3 ask.
    assert asked_in_a_row(found) == (2, 3)
    assert means_of(found)["consecutive_branches_over_chance"] == pytest.approx((2 / 3) / (3 / 6))
    assert asked_in_a_row(found[:1]) == (0, 0)


def test_random_branches_are_as_chance_has_them_although_the_budget_is_spent_early():
    engine, questions = ScriptedEngine(calls_then_answer(4)), [make_question(f"q{number}") for number in range(20)]
    rule = RandomBranching(rate=0.5)
    trees = grow(engine, questions, branch_policy=rule, allocator=RootShare(share=0.5), budget=8)
    assert statistics.fmean(len(tree.branch_depths) for tree in trees) > 3.5  # of four
    means = summarise_trees(trees).means()
    assert means["branches_at_depth_1_fraction"] > 0.4
    for name in ("branches_at_depth_1", "branches_at_depth_2", "branches_at_depth_3", "branches_deeper"):
        assert means[f"{name}_over_chance"] == pytest.approx(1, abs=0.3), name
    assert means["consecutive_branches_over_chance"] == pytest.approx(1, abs=0.3)


def test_the_lift_of_branches_is_against_the_chains_that_could_have_branched():
    tree = hand_tree()
    tree.decisions = [
        decision(("r", 0), 1, num_opened=1),
        decision(("r", 0, "b", 1, 0), 2),
        decision(("r", 9), 1),  # of a probe that was discarded
    ]
    # The branch earned 0.5; the chains of the two decisions that have a reward earned 1 and 0.5.
    assert summarise_trees([tree]).means()["branch_reward_lift"] == pytest.approx(0.5 - 0.75)


def test_random_branches_have_no_lift():
    """A branch and the chain that it left go on from the same tokens, whatever those are worth."""
    random, lifts = Random(0), []
    for _ in range(200):
        tree, worth = hand_tree(), random.gauss(0, 3)
        values = [worth + random.gauss(0, 1), worth + random.gauss(0, 1), random.gauss(0, 1)]
        for leaf, value in zip(tree.leaves, values, strict=True):
            leaf.reward = replace(leaf.reward, reward=value)
        lifts.append(branch_reward_lift(tree, tree.scored_leaves)[0])
    assert abs(statistics.fmean(lifts)) < 4 * statistics.stdev(lifts) / math.sqrt(len(lifts))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (EntropyBalanced(gamma=1.0, penalty_per_step=0.0), {"near_alpha_fraction": 1 / 3}),
        (RandomBranching(rate=1.0), {}),
        (RecordingBranchPolicy(), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scores_near_alpha_are_counted_for_rules_that_have_one(policy, expected):
    # Entropies 1 at the start, then 1.04, 1.06 and 0.5: one of three scores is within 0.05 of alpha.
    entropies = [1.0, 1.04, 1.06, 0.5]
    engine = ScriptedEngine(calls_then_answer(3, lambda done: entropies[done]))
    means = summarise_trees(grow(engine, branch_policy=policy, budget=1)).means()
    assert {name: value for name, value in means.items() if name == "near_alpha_fraction"} == pytest.approx(expected)


def test_the_branch_rate_counts_what_the_rule_asked_for_and_not_what_the_budget_allowed():
    policy = RecordingBranchPolicy(rule=lambda context: int(context.entropy > 1))
    engine = ScriptedEngine(calls_then_answer(4, lambda done: 1.0 + (done in (1, 2, 3))))
    (tree,) = grow(engine, branch_policy=policy, budget=1)
    assert summarise_trees([tree]).means()["branch_rate"] == 3 / 4
    assert sum(each.num_opened for each in tree.decisions) == 0


def test_the_spread_of_siblings_is_that_below_each_branch_point():
    tree = hand_tree()
    # Rewards 1 and 0.5 below it: 0.125. 1, 0.5 and -1 in the group: mean 1/6, squares 25/36 + 4/36 + 49/36 = 78/36.
    assert summarise_trees([tree]).means()["sibling_reward_spread"] == pytest.approx(0.125 / (78 / 36 / 2))
    for leaf in tree.leaves:
        leaf.reward = tree.leaves[0].reward
    assert "sibling_reward_spread" not in summarise_trees([tree]).means()


def test_trajectories_that_differ_in_no_token_count_once():
    engine = ScriptedEngine(calls_then_answer(1))
    (tree,) = grow(engine, branch_policy=RandomBranching(rate=1.0), budget=4)
    assert summarise_trees([tree]).means()["num_distinct_trajectories"] == 1
