"""Several calls in a turn, and tools whose states follow the branches of chains."""

import json

import pytest

from aepo_lightning.chat_formats.hermes import HermesFormat
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.reward import RewardOutput
from aepo_lightning.contracts.tool import ToolLimits, ToolState, ToolStatus
from aepo_lightning.contracts.tree import LeafOrigin
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rollout import difference, record_of, tree_from_dict, tree_to_dict
from aepo_lightning.rollout.group import GroupRollout
from aepo_lightning.tools import SQLiteCache, ToolRuntime
from tests.support.builders import (
    RecordingBranchPolicy,
    RootChains,
    ScriptedEngine,
    Turn,
    grow,
    make_parts,
    make_question,
)
from tests.support.chatml import chatml_tokenizer
from tests.support.slow import quick
from tests.support.tool_parts import CountingTool, Ledger

TOKENIZER = chatml_tokenizer()


class AnyReward:
    async def __call__(self, sample):
        return RewardOutput(reward=float(len(sample.tool_calls)), is_correct=True, is_well_formed=True)


def calls(*texts, tool="ledger"):
    """A turn that makes calls."""
    body = "".join(
        f"<tool_call>{json.dumps({'name': tool, 'arguments': {'text': text}})}</tool_call>" for text in texts
    )
    return Turn(text=body, ends=True)


def make_engine(turns):
    """A policy that makes the calls of each turn, named after the chain's seed where they say so, then answers."""

    def script(text, params):
        done = text.count("<|im_start|>assistant") - 1
        if done >= len(turns):
            return Turn(text="done", ends=True)
        own = [each.replace("SEED", str(params.seed % 997)) for each in turns[done]]
        return calls(*own)

    return ScriptedEngine(script, tokenizer=TOKENIZER, max_model_len=4000)


def roll(turns, tool, cache=None, **changes):
    engine = make_engine(turns)
    runtime = ToolRuntime(tools=[tool], cache=cache)
    changes = {"budget": 1, "max_response_tokens": 3000, "max_tool_calls": 20, "reward": AnyReward()} | changes
    (tree,) = grow(engine, tools=runtime, chat_format=HermesFormat(TOKENIZER, runtime.specs), **changes)
    return tree


def results(tree, leaf):
    return [s.tool_result.text for s in tree.path(leaf.segment_id) if s.source is SegmentSource.TOOL]


def test_the_calls_of_a_turn_run_at_the_same_time_and_their_results_stand_in_order():
    tool = CountingTool(name="ledger", script=[0.03, 0.02, 0.01])
    tree = roll([["a", "b", "c"]], tool)
    (leaf,) = tree.leaves
    assert tool.most_running == 3
    assert results(tree, leaf) == ["0.03", "0.02", "0.01"]
    assert (leaf.num_tool_calls, leaf.stop_reason) == (3, StopReason.EOS)
    sources = [segment.source for segment in tree.path(leaf.segment_id)]
    tool_turn = [SegmentSource.TOOL] * 3
    assert sources == [SegmentSource.PROMPT, SegmentSource.POLICY, *tool_turn, SegmentSource.POLICY]


def test_what_the_policy_sampled_and_nothing_else_is_trained():
    tree = roll([["a", "b"], ["c"]], CountingTool(name="ledger"))
    path = tree.trajectory(tree.leaves[0])
    text = TOKENIZER.decode(path.token_ids)
    own = TOKENIZER.decode([t for t, sampled in zip(path.token_ids, path.is_sampled, strict=True) if sampled])
    assert text.count("<tool_response>") == 3
    assert own == calls("a", "b").text + "<eos>" + calls("c").text + "<eos>" + "done<eos>"


@pytest.mark.parametrize(("on_limit", "stop"), [("stop", StopReason.CALL_LIMIT), ("tell", StopReason.EOS)])
def test_calls_beyond_the_limit_in_the_middle_of_a_turn_are_told(on_limit, stop):
    tool = CountingTool(name="ledger")
    tree = roll([["a", "b", "c"], ["d"]], tool, max_tool_calls=2, on_call_limit=on_limit)
    statuses = [s.tool_result.status for s in tree.segments if s.tool_result]
    assert statuses[:3] == [ToolStatus.OK, ToolStatus.OK, ToolStatus.CALL_LIMIT]
    assert tool.calls == ["a", "b"]
    assert tree.leaves[0].stop_reason is stop


@pytest.mark.parametrize("order", [1, -1], ids=["limited last", "limited first"])
def test_a_turn_goes_on_while_one_of_its_calls_is_within_its_limit(order):
    tools = [CountingTool(name="ledger"), CountingTool(name="other")]
    turns = [
        calls("a"),
        Turn(text="".join(each.text for each in (calls("b", tool="other"), calls("c"))[::order]), ends=True),
        calls("d"),
    ]
    runtime = ToolRuntime(tools=tools)
    (tree,) = grow(
        ScriptedEngine(
            lambda text, _: turns[text.count("<|im_start|>assistant") - 1], tokenizer=TOKENIZER, max_model_len=4000
        ),
        tools=runtime,
        chat_format=HermesFormat(TOKENIZER, runtime.specs),
        budget=1,
        max_response_tokens=3000,
        max_calls={"ledger": 1},
        reward=AnyReward(),
    )
    assert [tool.calls for tool in tools] == [["a"], ["b"]]
    assert tree.leaves[0].stop_reason is StopReason.CALL_LIMIT
    statuses = [s.tool_result.status for s in tree.segments if s.tool_result]
    assert statuses == [ToolStatus.OK, *[ToolStatus.OK, ToolStatus.CALL_LIMIT][::order]]


def test_results_that_do_not_fit_are_kept_beside_the_trajectory():
    tree = roll([["a", "b"]], CountingTool(name="ledger", script=["x" * 3000] * 2))
    (leaf,) = tree.leaves
    assert (leaf.stop_reason, leaf.num_tool_calls) == (StopReason.LENGTH, 0)
    assert [unused.call_index for unused in tree.unused_calls] == [0, 1]


def branchy(state, num_roots=1):
    tool = Ledger(state=state)
    settings = {"budget": 4, "allocator": RootChains(num_root_chains=num_roots)}
    return tool, roll([["a", "b"], ["SEED"], ["SEED"]], tool, branch_policy=RecordingBranchPolicy(), **settings)


@pytest.mark.parametrize("state", [ToolState.FORKABLE, ToolState.REPLAYABLE])
def test_each_chain_sees_its_own_calls_and_those_of_its_trunk(state):
    tool, tree = branchy(state)
    assert sum(leaf.origin is LeafOrigin.BRANCH for leaf in tree.leaves) == 3
    for leaf in tree.leaves:
        path = [s for s in tree.path(leaf.segment_id) if s.source is SegmentSource.TOOL]
        made = [segment.tool_call.arguments["text"] for segment in path]
        assert results(tree, leaf) == [",".join(made[: place + 1]) for place in range(len(made))]
    assert len({leaf.segment_id for leaf in tree.leaves}) == 4
    assert tool.num_open == 0


@pytest.mark.parametrize("status", quick({"cut_off": ToolStatus.TIMEOUT, "all_ran": ToolStatus.OK}, "all_ran"))
def test_the_calls_of_a_turn_to_a_tool_with_a_state_follow_one_another_whatever_becomes_of_them(status):
    tool = Ledger(limits=ToolLimits(deadline_s=5.0))
    middle = "hang" if status is ToolStatus.TIMEOUT else "b"
    tree = roll([["a", middle, "c"], ["d"]], tool)
    (leaf,) = tree.leaves
    assert [s.tool_result.status for s in tree.segments if s.tool_result] == [ToolStatus.OK, status] + [
        ToolStatus.OK
    ] * 2
    seen = "a,c" if status is ToolStatus.TIMEOUT else "a,b,c"
    assert results(tree, leaf)[-2:] == [seen, f"{seen},d"]


def test_answers_of_a_tool_with_a_state_are_kept_under_the_calls_of_the_same_turn_too(tmp_path):
    cache = SQLiteCache(tmp_path / "answers.sqlite")
    limits = ToolLimits(cache_ttl_s=None)
    first = roll([["a", "x"], ["b"]], Ledger(limits=limits), cache=cache)
    again = roll([["a", "x"], ["b"]], Ledger(limits=limits), cache=cache)
    other = roll([["x"], ["b"]], Ledger(limits=limits), cache=cache)
    cache.close()
    assert results(first, first.leaves[0]) == results(again, again.leaves[0]) == ["a", "a,x", "a,x,b"]
    assert all(s.tool_result.is_cached for s in again.segments if s.tool_result)
    assert results(other, other.leaves[0]) == ["x", "x,b"]


def test_a_state_catches_up_with_answers_of_its_turn_that_came_from_the_cache(tmp_path):
    cache = SQLiteCache(tmp_path / "answers.sqlite")
    limits = ToolLimits(cache_ttl_s=None)
    roll([["a"]], Ledger(limits=limits), cache=cache)
    tree = roll([["a", "b"], ["c"]], Ledger(limits=limits), cache=cache)
    cache.close()
    assert [s.tool_result.is_cached for s in tree.segments if s.tool_result] == [True, False, False]
    assert results(tree, tree.leaves[0]) == ["a", "a,b", "a,b,c"]


def test_chains_of_an_unforkable_tool_do_not_branch_and_the_refusals_are_counted():
    tool, tree = branchy(ToolState.UNFORKABLE)
    origins = [leaf.origin for leaf in tree.leaves]
    assert LeafOrigin.BRANCH not in origins
    assert origins.count(LeafOrigin.TOP_UP) == 3
    refused = [decision for decision in tree.decisions if decision.num_wanted]
    assert refused
    assert all(decision.num_opened == 0 and "ledger can neither" in decision.problem for decision in refused)
    assert tool.num_open == 0


@pytest.mark.parametrize("state", [ToolState.STATELESS, ToolState.FORKABLE])
def test_a_tree_with_several_calls_in_a_turn_replays_offline_and_survives_the_journal(state):
    tool = CountingTool(name="ledger") if state is ToolState.STATELESS else Ledger()
    turns = [["a", "b"], ["SEED"]]
    settings = {"budget": 3, "allocator": RootChains(num_root_chains=1), "branch_policy": RecordingBranchPolicy()}
    tree = roll(turns, tool, **settings)
    assert tree_from_dict(json.loads(json.dumps(tree_to_dict(tree)))).segments == tree.segments
    runtime = ToolRuntime(tools=[CountingTool(name="ledger", script=["must not be called"] * 99)])
    parts = make_parts(
        make_engine(turns),
        tools=runtime,
        chat_format=HermesFormat(TOKENIZER, runtime.specs),
        reward=AnyReward(),
        max_response_tokens=3000,
        max_tool_calls=20,
        **settings,
    )
    group = GroupRollout(parts, make_question(), tree.seed, record_of(tree))
    assert difference(tree, run_in_event_loop(group.grow())) is None
