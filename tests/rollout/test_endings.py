"""Ends that the user asks for: strings that end a trajectory, the length of a turn, and the time for all of it."""

import asyncio
import json

import pytest

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.rollout.group import GroupRollout
from aepo_lightning.rollout.record import GroupRecord, read_events, record_of
from tests.support.builders import ScriptedEngine, Turn, calls_then_answer, grow, make_parts, make_question
from tests.support.skipped_time import run_skipping


def test_a_string_that_ends_trajectories_is_no_call():
    def script(text, params):
        assert params.stop.count("</search>") == 1
        assert params.stop[-1] == "</answer>"
        return Turn(text="<answer> e2 </answer>", ends=False)

    (tree,) = grow(ScriptedEngine(script), budget=1, stop=["</answer>", "</search>"])
    assert (tree.leaves[0].stop_reason, tree.leaves[0].num_tool_calls) == (StopReason.EOS, 0)


def test_the_string_that_comes_last_decides():
    turns = iter(["<answer> <search> e1 </search>", "<search> e1 <answer> e2 </answer>"])
    (tree,) = grow(ScriptedEngine(lambda *_: Turn(text=next(turns), ends=False)), budget=1, stop=["</answer>"])
    assert (tree.leaves[0].stop_reason, tree.leaves[0].num_tool_calls) == (StopReason.EOS, 1)


def test_a_turn_has_a_length_of_its_own():
    engine = ScriptedEngine(lambda *_: Turn(text="go " * 9, ends=True))
    (tree,) = grow(engine, budget=1, max_turn_tokens=5)
    assert (tree.leaves[0].stop_reason, tree.num_generated_tokens) == (StopReason.LENGTH, 5)
    assert engine.requests[0][1].max_tokens == 5


class SlowEngine(ScriptedEngine):
    """Every turn takes four seconds."""

    async def _generate(self, prompt_ids, params, on_probe):
        await asyncio.sleep(4)
        return await super()._generate(prompt_ids, params, on_probe)


class SlowTools:
    """Every call takes three seconds."""

    tool_names = ("search",)

    def __init__(self, tools):
        self._tools, self.num_cancelled = tools, 0

    async def call(self, call, context):
        try:
            await asyncio.sleep(3)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return await self._tools.call(call, context)


def slow_parts(**changes):
    engine = SlowEngine(calls_then_answer(3))
    tools = SlowTools(make_parts(engine).tools)
    return make_parts(engine, budget=2, tools=tools, **changes)


def run(parts, record=None, sink=None):
    return run_skipping(GroupRollout(parts, make_question(), 0, record or GroupRecord(), sink).grow())


@pytest.mark.parametrize(
    "timeout_s, num_segments, num_calls, num_cancelled",
    [(3.0, 1, 0, 0), (6.0, 2, 0, 2), (10.0, 3, 1, 0), (13.0, 4, 1, 2), (26.0, 8, 3, 0)],
    ids=["first turn", "first call", "second turn", "second call", "in time"],
)
def test_a_trajectory_ends_when_its_time_is_over_with_what_it_has(timeout_s, num_segments, num_calls, num_cancelled):
    # turns at 0-4, 7-11, 14-18, 21-25; calls at 4-7, 11-14, 18-21
    parts = slow_parts(timeout_s=timeout_s)
    events = []
    tree = run(parts, sink=events.append)
    leaf = tree.leaves[0]
    assert leaf.stop_reason is (StopReason.EOS if timeout_s > 25 else StopReason.TIMEOUT)
    assert (len(tree.path(leaf.segment_id)), leaf.num_tool_calls) == (num_segments, num_calls)
    assert parts.tools.num_cancelled == num_cancelled
    assert leaf.reward is not None
    assert parts.engine.num_running == 0
    # Taken up again, and replayed without a clock, it ends where it ended.
    for record in (read_events([json.loads(json.dumps(event)) for event in events]), record_of(tree)):
        again = run(slow_parts(), record)
        assert [each.token_ids(leaf.segment_id) for each, leaf in pairs(again)] == [
            each.token_ids(leaf.segment_id) for each, leaf in pairs(tree)
        ]
        assert [leaf.stop_reason for leaf in again.leaves] == [leaf.stop_reason for leaf in tree.leaves]


def pairs(tree):
    return [(tree, leaf) for leaf in tree.leaves]


def test_a_timeout_of_somebody_else_is_not_taken_for_the_trajectorys():
    def script(text, params):
        raise TimeoutError("the engine's own")

    with pytest.raises(ExceptionGroup) as caught:
        run(make_parts(ScriptedEngine(script), budget=1, timeout_s=9.0))
    assert caught.group_contains(TimeoutError, match="the engine's own")
