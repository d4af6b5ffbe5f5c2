"""What is kept of a trajectory."""

from dataclasses import dataclass

import pytest

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.evaluation.judging import Unjudged, trajectory_facts
from aepo_lightning.rollout import RolloutSampler
from tests.support.builders import ScriptedEngine, calls_then_answer, make_parts, make_question


@dataclass
class Failing:
    """Answers every call with the same failure."""

    result: ToolResult
    tool_names = ("search",)

    async def call(self, _, __):
        return self.result


@pytest.mark.parametrize(
    ("status", "is_program_timeout", "num_outages"),
    [
        (ToolStatus.UNAVAILABLE, False, 2),
        (ToolStatus.BUSY, False, 2),
        (ToolStatus.TIMEOUT, False, 2),
        (ToolStatus.TIMEOUT, True, 0),
        (ToolStatus.ERROR, False, 0),
    ],
)
def test_failures_of_what_stands_behind_a_tool_are_told_from_those_of_calls(status, is_program_timeout, num_outages):
    failure = ToolResult(text="e1", status=status, is_program_timeout=is_program_timeout)
    parts = make_parts(ScriptedEngine(calls_then_answer(2)), reward=Unjudged(), tools=Failing(failure))
    (tree,) = RolloutSampler(parts.for_evaluation(1), 8).rollout([make_question("q0", "find e1")], 3)
    facts = trajectory_facts(tree, tree.leaves[0])
    assert facts["num_failed_calls"] == {status.value: 2}
    assert facts["num_outages"] == num_outages
