"""Trees that are grown again from what is on record, without a run around them."""

from aepo_lightning.app.replay import replay_trees
from aepo_lightning.contracts.tool import ToolResult
from tests.support.builders import ScriptedEngine, calls_then_answer, grow, make_parts


def test_no_reward_is_asked():
    async def judge(_):
        raise ConnectionError("nobody is there")

    def engine():
        return ScriptedEngine(calls_then_answer(1))

    (found,) = replay_trees(make_parts(engine(), reward=judge), "train", grow(engine()), 1)
    assert found.difference is None
    assert found.num_tokens > 0


def test_no_clock_runs():
    tree = grow(ScriptedEngine(calls_then_answer(1)))
    (found,) = replay_trees(make_parts(ScriptedEngine(calls_then_answer(1)), timeout_s=1e-9), "train", tree, 1)
    assert found.difference is None


def test_no_tool_is_called_for_what_is_not_on_record():
    class Tools:
        tool_names, calls = ("search",), 0

        async def call(self, *_):
            self.calls += 1
            return ToolResult(text="found")

    tools = Tools()
    trees = grow(ScriptedEngine(calls_then_answer(0)))
    (found,) = replay_trees(make_parts(ScriptedEngine(calls_then_answer(1)), tools=tools), "train", trees, 1)
    assert found.difference is not None
    assert tools.calls == 0
