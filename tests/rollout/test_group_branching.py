"""Branch decisions: counters per chain, baselines per trajectory, and the probe that decides afterwards."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.rollout import RolloutSampler, derive_uniform
from tests.support.builders import (
    RecordingBranchPolicy,
    RootChains,
    ScriptedBudget,
    ScriptedEngine,
    calls_then_answer,
    canonical,
    grow,
    make_parts,
    make_question,
    random_script,
    untimed,
)
from tests.support.slow import first_quick
from tests.support.tree_laws import check_decisions, check_tree

QUESTIONS = [make_question(f"q{number}") for number in range(4)]


def high_at(*high):
    """Branch where the number of tool results so far is in `high`."""
    return lambda num_results: 9.0 if num_results in high else 0.0


def branch_if_high(context):
    return int(context.entropy > 5)


def branches(tree):
    return [leaf.seed_path for leaf in tree.leaves if leaf.origin is LeafOrigin.BRANCH]


def test_consecutive_branches_count_up_on_a_chain_and_reset_where_it_does_not_branch():
    # A chain with five calls branches after results 1, 2 and 4. Before each decision l = 0, 1, 2, 0, 1.
    policy = RecordingBranchPolicy(rule=branch_if_high)
    engine = ScriptedEngine(calls_then_answer(5, high_at(1, 2, 4)))
    (tree,) = grow(engine, budget=30, allocator=RootChains(num_root_chains=1), branch_policy=policy)
    streaks = {context.uniform: context.consecutive_branches for context in policy.contexts}

    def streaks_of(path, turns):
        return [streaks[derive_uniform(0, "q", *path, turn, "decision")] for turn in turns]

    assert streaks_of(("r", 0), range(1, 6)) == [0, 1, 2, 0, 1]
    # A branch inherits l as it stands after the decision that opened it.
    assert streaks_of(("r", 0, "b", 1, 0), range(2, 6)) == [1, 2, 0, 1]
    assert streaks_of(("r", 0, "b", 4, 0), [5]) == [1]
    assert [path for path in branches(tree) if len(path) == 5] == [("r", 0, "b", turn, 0) for turn in (1, 2, 4)]


def test_a_decision_that_the_budget_turned_down_resets_the_count():
    policy = RecordingBranchPolicy(rule=lambda _: 1)
    grow(ScriptedEngine(calls_then_answer(5)), budget=1, allocator=RootChains(num_root_chains=1), branch_policy=policy)
    assert [context.consecutive_branches for context in policy.contexts] == [0] * 5


@pytest.mark.parametrize("penalty_scope", ["chain", "question"])
@pytest.mark.parametrize("branch_baseline", ["root", "own"])
@pytest.mark.parametrize("branch_signal", first_quick(["after_tool", "before_tool"]))
@pytest.mark.parametrize("allocator", [RootChains(num_root_chains=3), ScriptedBudget(num_root_chains=3)], ids=repr)
def test_every_decision_sees_what_the_finished_trees_say(allocator, branch_signal, branch_baseline, penalty_scope):
    recorder = RecordingBranchPolicy(rule=lambda context: int(context.entropy > 0.4))
    engine = ScriptedEngine(random_script(0.7, 0.0), pauses=lambda params: params.seed % 3)
    parts = make_parts(
        engine,
        allocator=allocator,
        branch_policy=recorder,
        budget=12,
        branch_signal=branch_signal,
        branch_baseline=branch_baseline,
        penalty_scope=penalty_scope,
    )
    sampler = RolloutSampler(parts)
    for seed in (0, 1):  # nothing leaks from one iteration into the next
        recorder.contexts.clear()
        trees = sampler.rollout(QUESTIONS, seed)
        for tree in trees:
            check_tree(tree, parts)
        check_decisions(trees, parts, seed, recorder.contexts)
        assert sum(len(branches(tree)) for tree in trees) > 8
        assert max(context.consecutive_branches for context in recorder.contexts) > 1


def test_a_branch_does_not_decide_again_where_it_was_born():
    # Every chain makes one call, so a branch's only turn after a tool result is the one it was born for.
    policy = RecordingBranchPolicy(rule=lambda _: 1)
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(1)), budget=6, allocator=RootChains(num_root_chains=2), branch_policy=policy
    )
    assert len(branches(tree)) == 2
    assert len(policy.contexts) == 4  # two roots and two top-ups


def test_initial_entropies_are_those_of_each_trajectory_and_never_of_another_question():
    first = {f"q{number}": float(number + 1) for number in range(4)}

    def script(text, params):
        number = int(text.split()[1][1:])
        return calls_then_answer(3, lambda done: first[f"q{number}"] if done == 0 else 50.0)(text, params)

    policy = RecordingBranchPolicy(rule=lambda context: int(context.consecutive_branches < 2))
    questions = [make_question(f"q{number}", text=f"find e{number}") for number in range(4)]
    engine = ScriptedEngine(script, pauses=lambda params: params.seed % 4)
    sampler = RolloutSampler(make_parts(engine, budget=6, branch_policy=policy))
    for seed in range(3):
        policy.contexts.clear()
        sampler.rollout(questions, seed)
        counts = Counter(context.initial_entropy for context in policy.contexts)
        assert set(counts) == set(first.values())


def test_no_more_branches_are_opened_than_the_budget_allows():
    policy = RecordingBranchPolicy(rule=lambda _: 3)
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(3)), budget=6, allocator=RootChains(num_root_chains=1), branch_policy=policy
    )
    assert [path for path in branches(tree) if path[3] == 1] == [("r", 0, "b", 1, index) for index in range(3)]
    assert len(branches(tree)) == 5


def test_roots_that_have_not_started_keep_their_share_of_the_budget():
    # The probe would branch six times over, but m = 4 of the 6 trajectories are promised to the root.
    policy = RecordingBranchPolicy(rule=lambda _: 5)
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(2)),
        budget=6,
        allocator=ScriptedBudget(num_root_chains=4),
        branch_policy=policy,
    )
    assert Counter(leaf.origin for leaf in tree.leaves) == {
        LeafOrigin.PROBE: 1,
        LeafOrigin.ROOT: 3,
        LeafOrigin.BRANCH: 2,
    }


@pytest.mark.parametrize("seed", first_quick(range(4)))
@pytest.mark.parametrize("top_up", first_quick(["parallel", "sequential"]))
@pytest.mark.parametrize("branch_signal", ["after_tool", "before_tool", "prefix"])
def test_a_kept_probe_decides_what_a_chain_with_the_same_seeds_decides_on_its_way(branch_signal, top_up, seed):
    def run(allocator):
        policy = RecordingBranchPolicy(rule=lambda c: int(c.uniform < 0.5 and c.consecutive_branches < 2))
        # Two root chains of about two calls each cannot use up 38 branches.
        parts = make_parts(
            ScriptedEngine(random_script(0.6, 0.0)),
            budget=40,
            allocator=allocator,
            branch_policy=policy,
            branch_signal=branch_signal,
            top_up=top_up,
            max_tool_calls=4,
        )
        trees = RolloutSampler(parts).rollout(QUESTIONS, seed)
        return trees, sorted(policy.contexts, key=lambda context: context.uniform)

    probed, probed_contexts = run(ScriptedBudget(num_root_chains=2))
    plain, plain_contexts = run(RootChains(num_root_chains=2))
    for left, right in zip(probed, plain, strict=True):
        assert any(leaf.origin is LeafOrigin.TOP_UP for leaf in left.leaves)  # the budget did not bind
        (probe,) = [leaf for leaf in left.leaves if leaf.origin is LeafOrigin.PROBE]
        probe.origin = LeafOrigin.ROOT
        assert canonical(left) == canonical(right)
    assert probed_contexts == plain_contexts
    assert sum(len(branches(tree)) for tree in probed) > 3


@pytest.mark.parametrize("keep_probe", [True, False])
@pytest.mark.parametrize("branch_signal", ["after_tool", "before_tool", "prefix"])
def test_the_split_uses_the_first_turn_and_the_turns_after_tool_results(branch_signal, keep_probe):
    # Entropies 1 before any tool, then 10, 20 and 30 after the three results.
    allocator = ScriptedBudget(num_root_chains=2)
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(3, lambda done: 10.0 * done or 1.0)),
        budget=5,
        allocator=allocator,
        keep_probe=keep_probe,
        branch_signal=branch_signal,
    )
    assert allocator.seen == [(5, 1.0, [10.0, 20.0, 30.0])]
    assert (tree.root_entropy, tree.tool_entropies) == (1.0, [10.0, 20.0, 30.0])


def test_the_window_of_the_measure_is_the_start_of_a_turn():
    engine = ScriptedEngine(calls_then_answer(1))
    original = engine._generation

    def rising(turn, token_ids, params, reason):
        generation = original(turn, token_ids, params, reason)
        return replace(generation, entropies=[float(place) for place in range(len(token_ids))])

    engine._generation = rising
    allocator = ScriptedBudget()
    grow(engine, allocator=allocator)
    assert allocator.seen == [(4, 0.5, [0.5])]  # (0 + 1) / 2


def test_a_discarded_probe_leaves_nothing_but_its_cost():
    engine = ScriptedEngine(calls_then_answer(2))
    parts = make_parts(engine, budget=3, allocator=ScriptedBudget(num_root_chains=3), keep_probe=False)
    (tree,) = RolloutSampler(parts).rollout([make_question()], 0)
    check_tree(tree, parts)
    assert {leaf.origin for leaf in tree.leaves} == {LeafOrigin.ROOT}
    assert tree.num_discarded_tokens == 3 + 3 + 9  # two calls of 3 tokens, an answer of 8 and the end of sequence
    assert tree.num_generated_tokens == 4 * (3 + 3 + 9)
    seeds = [params.seed for _, params in engine.requests]
    assert len(set(seeds)) == len(seeds)


def make_sampler(script=None, pauses=lambda _: 0, **changes):
    changes = {"budget": 10, "allocator": ScriptedBudget(num_root_chains=3)} | changes
    changes.setdefault("branch_policy", EntropyBalanced(gamma=0.5))
    return RolloutSampler(make_parts(ScriptedEngine(script or random_script(), pauses=pauses), **changes))


@pytest.mark.parametrize("top_up", ["parallel", "sequential"])
def test_one_seed_gives_identical_trees_and_another_seed_different_ones(top_up):
    first, again, other = (untimed(make_sampler(top_up=top_up).rollout(QUESTIONS, seed)) for seed in (5, 5, 6))
    assert first == again
    assert canonical(first[0]) != canonical(other[0])
    assert len({str(canonical(tree)) for tree in first}) == len(first)


def test_a_tree_does_not_depend_on_the_other_questions():
    together = make_sampler().rollout(QUESTIONS, 5)
    alone = [make_sampler().rollout([question], 5)[0] for question in QUESTIONS]
    assert list(map(canonical, together)) == list(map(canonical, alone))


@pytest.mark.parametrize("unlucky", first_quick(range(5)))
def test_latencies_do_not_change_trees_while_the_branch_budget_lasts(unlucky):
    # Which chain gets the last of the budget depends on who comes first; before that, nothing does.
    changes = {"budget": 60, "branch_policy": EntropyBalanced(alpha=0.2, penalty_per_step=0.5), "max_tool_calls": 4}
    random = Random(unlucky)
    delayed = make_sampler(pauses=lambda _: random.randrange(6), **changes).rollout(QUESTIONS, 5)
    prompt = make_sampler(**changes).rollout(QUESTIONS, 5)
    assert all(any(leaf.origin is LeafOrigin.TOP_UP for leaf in tree.leaves) for tree in prompt)
    assert list(map(canonical, delayed)) == list(map(canonical, prompt))
    assert any(branches(tree) for tree in prompt)


def test_branches_start_while_their_trunk_still_generates():
    order = []
    engine = ScriptedEngine(calls_then_answer(1, high_at(1)))
    original = engine._generate

    async def traced(prompt_ids, params, on_probe):
        order.append("start")
        generation = await original(prompt_ids, params, on_probe)
        order.append("end")
        return generation

    engine._generate = traced
    grow(
        engine,
        budget=2,
        allocator=RootChains(num_root_chains=1),
        branch_policy=RecordingBranchPolicy(rule=branch_if_high),
    )
    assert order == ["start", "end", "start", "start", "end", "end"]


def test_tool_tokens_are_stored_once_and_shared():
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(1)),
        budget=4,
        allocator=RootChains(num_root_chains=1),
        branch_policy=RecordingBranchPolicy(rule=lambda _: 3),
    )
    assert Counter(segment.source for segment in tree.segments) == {
        SegmentSource.PROMPT: 1,
        SegmentSource.POLICY: 1 + 4,
        SegmentSource.TOOL: 1,
    }
    assert tree.num_generated_tokens == 3 + 4 * 9


def test_a_kept_probe_does_not_take_the_branch_budget_of_chains_that_get_as_far():
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(3)),
        budget=8,
        allocator=ScriptedBudget(num_root_chains=4),
        branch_policy=RecordingBranchPolicy(),
    )
    # Everybody wants to branch at every turn: four chains share four branches at the first one.
    assert sorted(tree.branch_roots) == [0, 1, 2, 3]
    assert tree.branch_depths == [1, 1, 1, 1]


def test_a_probe_that_went_further_than_every_other_chain_decides_there_too():
    # The probe answers after four calls; every other chain, which its seed tells apart, after one.
    seeds = set()

    def script(text, params):
        if len(seeds) < 5:
            seeds.add(params.seed)
        return calls_then_answer(4 if params.seed in seeds else 1)(text, params)

    (tree,) = grow(
        ScriptedEngine(script),
        budget=6,
        allocator=ScriptedBudget(num_root_chains=3),
        branch_policy=RecordingBranchPolicy(),
    )
    probe = [decision.turn for decision in tree.decisions if decision.seed_path == ("r", 0)]
    assert probe == [1, 2, 3, 4]
