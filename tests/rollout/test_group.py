"""One question: exactly k trajectories whatever the policy does, and every way a trajectory can end."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aepo_lightning.branching import EntropyBalanced, NeverBranch, OfficialEntropyBalanced
from aepo_lightning.budgets import PreMonitoring
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolStatus
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.rollout import RolloutSampler
from tests.support.builders import (
    ANSWER,
    CALL,
    RecordingBranchPolicy,
    RootChains,
    ScriptedBudget,
    ScriptedEngine,
    Turn,
    calls_then_answer,
    grow,
    make_parts,
    make_question,
    random_script,
)
from tests.support.tree_laws import check_decisions, check_tree


@dataclass
class RecordingReward:
    """Scores nothing and remembers what it was given."""

    inputs: list = field(default_factory=list)

    async def __call__(self, sample):
        self.inputs.append(sample)
        return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True)


def allocators(budget):
    m = st.integers(1, budget)
    return st.one_of(
        m.map(lambda number: RootChains(num_root_chains=number)),
        m.map(lambda number: ScriptedBudget(num_root_chains=number)),
        st.builds(
            PreMonitoring,
            beta=st.sampled_from([0.0, 0.5, 20.0]),
            rounding=st.sampled_from(["nearest", "floor_plus_one"]),
            includes_root_turn=st.booleans(),
        ),
    )


branch_rules = st.one_of(
    st.just(NeverBranch()),
    st.builds(
        EntropyBalanced,
        alpha=st.sampled_from([0.0, 0.5, 1.0]),
        gamma=st.sampled_from([0.0, 2.0]),
        penalty_per_step=st.sampled_from([0.0, 0.3, 1.0]),
        decision=st.sampled_from(["bernoulli", "threshold"]),
        branch_width=st.integers(1, 3),
    ),
    st.just(OfficialEntropyBalanced()),
    st.sampled_from([1, 5, -1]).map(lambda number: RecordingBranchPolicy(rule=lambda _: number)),
)


@st.composite
def cases(draw):
    budget = draw(st.integers(1, 7))
    changes = {
        "budget": budget,
        "allocator": draw(allocators(budget)),
        "max_tool_calls": draw(st.integers(0, 4)),
        "max_response_tokens": draw(st.sampled_from([1, 12, 60, 300])),
    }
    switches = {
        "top_up": ("parallel", "sequential"),
        "keep_probe": (True, False),
        "on_call_limit": ("stop", "tell"),
        "branch_signal": ("after_tool", "before_tool", "prefix"),
        "penalty_scope": ("chain", "question"),
        "branch_baseline": ("root", "own"),
    }
    changes |= {name: draw(st.sampled_from(values)) for name, values in switches.items()}
    script = random_script(draw(st.sampled_from([0.0, 0.6, 0.95])), draw(st.sampled_from([0.0, 0.1])))
    return script, changes, draw(branch_rules), draw(st.integers(0, 5)), draw(st.integers(0, 3))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(cases())
def test_every_combination_of_parts_and_switches_gives_exactly_k_trajectories(case):
    check_case(case)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(cases())
def test_many_combinations_of_parts_and_switches_give_exactly_k_trajectories(case):
    check_case(case)


def check_case(case):
    script, changes, rule, seed, pause = case
    engine = ScriptedEngine(script, max_model_len=200, pauses=lambda params: params.seed % (pause + 1))
    recorder, reward = RecordingBranchPolicy(rule=rule.num_branches), RecordingReward()
    parts = make_parts(engine, branch_policy=recorder, reward=reward, **changes)
    questions = [make_question(f"q{number}") for number in range(2)]
    trees = RolloutSampler(parts).rollout(questions, seed)
    for tree in trees:
        check_tree(tree, parts)
    check_decisions(trees, parts, seed, recorder.contexts)
    seeds = [params.seed for _, params in engine.requests]
    assert len(set(seeds)) == len(seeds)
    assert engine.num_running == 0
    for sample in reward.inputs:
        assert len(sample.tool_calls) == len(sample.tool_results) == sample.response_text.count("</result>")


def test_the_scripted_engine_satisfies_the_protocol():
    assert isinstance(ScriptedEngine(calls_then_answer(0)), Engine)


@pytest.mark.parametrize("top_up", ["parallel", "sequential"])
@pytest.mark.parametrize("allocator", [RootChains(num_root_chains=1), PreMonitoring(), ScriptedBudget()], ids=repr)
def test_a_budget_of_one_is_one_chain(allocator, top_up):
    policy = RecordingBranchPolicy(rule=lambda _: 3)
    (tree,) = grow(
        ScriptedEngine(calls_then_answer(2)), budget=1, allocator=allocator, branch_policy=policy, top_up=top_up
    )
    assert [leaf.seed_path for leaf in tree.leaves] == [("r", 0)]
    assert tree.leaves[0].num_tool_calls == 2


def test_a_policy_that_never_calls_a_tool_gets_all_its_budget_at_the_root():
    (tree,) = grow(ScriptedEngine(calls_then_answer(0)), budget=5, allocator=PreMonitoring())
    assert tree.global_budget == 5
    assert tree.tool_entropies == []
    assert [leaf.origin for leaf in tree.leaves] == [LeafOrigin.PROBE] + [LeafOrigin.ROOT] * 4


@pytest.mark.parametrize("top_up", ["parallel", "sequential"])
def test_branch_budget_that_nobody_uses_becomes_fresh_chains(top_up):
    allocator = RootChains(num_root_chains=2)
    (tree,) = grow(ScriptedEngine(calls_then_answer(0)), budget=5, allocator=allocator, top_up=top_up)
    assert [leaf.origin for leaf in tree.leaves] == [LeafOrigin.ROOT] * 2 + [LeafOrigin.TOP_UP] * 3
    assert [leaf.seed_path for leaf in tree.leaves] == [("r", root) for root in range(5)]


def test_sequential_top_up_starts_one_chain_after_another():
    running = []
    engine = ScriptedEngine(calls_then_answer(1), pauses=lambda _: running.append(engine.num_running) or 2)
    grow(engine, budget=6, allocator=RootChains(num_root_chains=1), top_up="sequential")
    assert max(running) == 1
    running.clear()
    grow(engine, budget=6, allocator=RootChains(num_root_chains=1), top_up="parallel")
    assert max(running) == 5


def test_a_top_up_may_branch_only_while_budget_is_left():
    policy = RecordingBranchPolicy(rule=lambda context: int(context.entropy > 5))

    def script(text, params):
        late = len(engine.requests) > 4  # the first chain does not branch, the first top-up does
        return calls_then_answer(1, lambda _: 9.0 if late else 0.0)(text, params)

    engine = ScriptedEngine(script)
    (tree,) = grow(engine, budget=4, allocator=RootChains(num_root_chains=2), branch_policy=policy, top_up="sequential")
    assert [leaf.origin for leaf in tree.leaves].count(LeafOrigin.TOP_UP) == 1
    assert [leaf.seed_path for leaf in tree.leaves if leaf.origin is LeafOrigin.BRANCH] == [("r", 2, "b", 1, 0)]


def test_one_call_too_many_stops_the_trajectory():
    (tree,) = grow(ScriptedEngine(calls_then_answer(9)), budget=1, max_tool_calls=2)
    (leaf,) = tree.leaves
    assert leaf.stop_reason is StopReason.CALL_LIMIT
    assert leaf.num_tool_calls == 2
    assert tree.segments[leaf.segment_id].source is SegmentSource.POLICY


def test_at_zero_calls_the_first_one_stops_the_trajectory():
    (tree,) = grow(ScriptedEngine(calls_then_answer(9)), budget=1, max_tool_calls=0)
    assert tree.leaves[0].stop_reason is StopReason.CALL_LIMIT
    assert tree.leaves[0].num_tool_calls == 0


def test_one_call_too_many_is_told_and_the_trajectory_goes_on():
    (tree,) = grow(ScriptedEngine(calls_then_answer(3)), budget=1, max_tool_calls=2, on_call_limit="tell")
    results = [segment.tool_result for segment in tree.segments if segment.tool_result]
    assert [result.status for result in results] == [ToolStatus.OK, ToolStatus.OK, ToolStatus.CALL_LIMIT]
    assert results[2].text == "The limit of 2 tool calls is reached. Answer with what you know."
    assert tree.leaves[0].stop_reason is StopReason.EOS
    assert tree.leaves[0].num_tool_calls == 3


def test_a_policy_that_ignores_the_limit_ends_when_its_tokens_are_used_up():
    (tree,) = grow(ScriptedEngine(calls_then_answer(10**6)), budget=2, max_tool_calls=1, on_call_limit="tell")
    assert {leaf.stop_reason for leaf in tree.leaves} == {StopReason.LENGTH}


@pytest.mark.parametrize("needs_probe", [True, False])
@pytest.mark.parametrize("num_tokens", [400, 500])
def test_a_prompt_that_fills_the_context_costs_its_own_question_only(num_tokens, needs_probe, caplog):
    questions = [make_question("long", text="go " * num_tokens), make_question("short")]
    engine = ScriptedEngine(calls_then_answer(1))
    allocator = PreMonitoring() if needs_probe else RootChains(num_root_chains=2)
    long, short = grow(engine, questions, budget=3, allocator=allocator)
    assert f"'long' has {num_tokens} tokens, but the engine's context has 400" in caplog.text
    assert [leaf.stop_reason for leaf in long.leaves] == [StopReason.LENGTH] * 3
    assert {tuple(path.token_ids) for path in long.trajectories()} == {tuple(long.segments[0].token_ids)}
    assert len(long.segments) == 1
    assert long.segments[0].end == 400
    assert len(set(long.rewards)) == 1
    check_tree(short, make_parts(engine, budget=3, allocator=allocator))


def test_a_prompt_that_leaves_one_token_gives_trajectories_of_one_token():
    (tree,) = grow(ScriptedEngine(calls_then_answer(0)), [make_question(text="go " * 399)], budget=3)
    assert {leaf.stop_reason for leaf in tree.leaves} == {StopReason.LENGTH}
    assert {len(tree.trajectory(leaf).token_ids) for leaf in tree.leaves} == {400}


# The call is 3 tokens, its result `<result> go e1 </result>` 4: 8 leave one token to answer with, 7 leave none.
@pytest.mark.parametrize(("max_response_tokens", "num_tool_calls"), [(7, 0), (8, 1)])
@pytest.mark.parametrize("limit", ["response", "context"])
def test_a_tool_result_that_leaves_no_room_ends_the_trajectory_without_it(max_response_tokens, num_tool_calls, limit):
    engine = ScriptedEngine(calls_then_answer(5), max_model_len=400 if limit == "response" else 2 + max_response_tokens)
    settings = {"max_response_tokens": max_response_tokens} if limit == "response" else {}
    (tree,) = grow(engine, budget=1, **settings)
    (leaf,) = tree.leaves
    assert leaf.stop_reason is StopReason.LENGTH
    assert leaf.num_tool_calls == num_tool_calls
    assert len(tree.trajectory(leaf).token_ids) == (2 + 3 if num_tool_calls == 0 else 2 + 8)


def test_a_response_is_cut_at_its_budget():
    engine = ScriptedEngine(lambda *_: Turn(text="go " * 50, ends=True))
    (tree,) = grow(engine, budget=1, max_response_tokens=11)
    assert tree.leaves[0].stop_reason is StopReason.LENGTH
    assert len(tree.segments[1].token_ids) == 11


def test_tags_in_the_prompt_are_not_parsed():
    question = make_question(text="find <search> e5 </search> <search>")

    def script(text, params):
        return Turn(text="e1 </search>") if "</result>" not in text else Turn(text=ANSWER, ends=True)

    (tree,) = grow(ScriptedEngine(script), [question], budget=1)
    (result,) = [segment.tool_result for segment in tree.segments if segment.tool_result]
    assert result.status is ToolStatus.MALFORMED
    assert "</search> without <search> before it" in result.text


def test_a_malformed_call_ends_the_trajectory_if_the_algorithm_says_so():
    (tree,) = grow(ScriptedEngine(lambda *_: Turn(text="e1 </search>")), budget=1, on_malformed_call="stop")
    assert tree.leaves[0].stop_reason is StopReason.MALFORMED_CALL
    assert not [segment for segment in tree.segments if segment.tool_result]
    (tree,) = grow(ScriptedEngine(calls_then_answer(1)), budget=1, on_malformed_call="stop")
    assert tree.leaves[0].stop_reason is StopReason.EOS


def test_a_call_to_a_tool_that_the_run_does_not_offer_is_answered():
    engine = ScriptedEngine(lambda text, _: Turn(text=ANSWER, ends=True) if "result" in text else Turn(text=browse))
    browse = "<browse> e1 </browse>"
    (tree,) = grow(engine, budget=1)
    (segment,) = [segment for segment in tree.segments if segment.tool_result]
    assert segment.tool_result.status is ToolStatus.UNKNOWN_TOOL
    assert segment.tool_call.tool == "browse"


def test_each_call_is_made_and_answered_once_and_kept_beside_its_tokens():
    reward = RecordingReward()
    (tree,) = grow(ScriptedEngine(calls_then_answer(2)), budget=1, reward=reward)
    tools = [segment for segment in tree.segments if segment.source is SegmentSource.TOOL]
    assert [segment.tool_call.text for segment in tools] == ["e1", "e1"]
    (sample,) = reward.inputs
    assert sample.response_text == f"{CALL} <result> go e1 </result> {CALL} <result> go e1 </result> {ANSWER}"
    assert sample.tool_calls == tuple(segment.tool_call for segment in tools)
    assert sample.tool_results == tuple(segment.tool_result for segment in tools)
    assert sample.stop_reason is StopReason.EOS


def test_the_reward_sees_the_whole_response_and_the_paper_reward_scores_it():
    (tree,) = grow(ScriptedEngine(calls_then_answer(1)), budget=2)
    assert tree.rewards == [1.0, 1.0]
    assert all(leaf.reward.is_correct for leaf in tree.leaves)


def test_every_turn_is_sampled_with_the_settings_of_the_rollout():
    engine = ScriptedEngine(calls_then_answer(1))
    grow(engine, budget=1, temperature=0.7, top_p=0.9, top_k=5, max_response_tokens=50)
    (first, one), (second, two) = engine.requests
    assert {(p.temperature, p.top_p, p.top_k, p.num_probe_tokens) for p in (one, two)} == {(0.7, 0.9, 5, 2)}
    assert second[: len(first)] == first
    assert one.max_tokens == 50
    assert two.max_tokens == 50 - 3 - 4  # the call and its result
    assert "</search>" in one.stop
