"""A tool that stays away: calls say so for a while, then the run stops or waits."""

import asyncio
import math

import pytest

from aepo_lightning.contracts.reward import RewardInput, RewardOutput
from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError, ToolOutageError, ToolUnavailableError
from aepo_lightning.rollout.scoring import ScoringSettings, score
from aepo_lightning.tools import ToolRuntime
from aepo_lightning.tools.runtime.outage import Outage
from tests.support.skipped_time import run_skipping
from tests.support.tool_parts import make_context

AWAY = ToolResult(text="away.", status=ToolStatus.UNAVAILABLE)
HERE = ToolResult(text="here")


def calls(outage, gaps_s, is_here=lambda _: False):
    """Make a call after each gap; return the statuses and when the last ended."""

    async def scenario():
        loop, found = asyncio.get_running_loop(), []

        async def call():
            return HERE if is_here(loop.time()) else AWAY

        for gap_s in gaps_s:
            await asyncio.sleep(gap_s)
            found.append((await outage.outlast(call)).status)
        return found, loop.time()

    return run_skipping(scenario())


def test_calls_are_answered_until_the_tool_was_away_for_too_long_and_then_the_run_stops():
    outage = Outage("python", 100.0, is_waited_out=False)
    assert calls(outage, [0, 50, 49])[0] == [ToolStatus.UNAVAILABLE] * 3
    with pytest.raises(ToolOutageError, match=r"Tool\(python\) must be available .* not for 10\d s: away\..*on_outage"):
        calls(Outage("python", 100.0, is_waited_out=False), [0, 50, 52])


def test_or_its_calls_wait_with_growing_pauses_until_it_is_back():
    outage = Outage("python", 100.0, is_waited_out=True)
    statuses, ended = calls(outage, [0, 50, 50], lambda now: now > 1000)
    assert statuses == [ToolStatus.UNAVAILABLE, ToolStatus.UNAVAILABLE, ToolStatus.OK]
    assert 1000 < ended <= 1060
    assert calls(outage, [0, 50], lambda _: False)[0] == [ToolStatus.UNAVAILABLE] * 2, "counted anew"


def test_time_in_which_nobody_asked_counts_a_minute_at_most():
    assert calls(Outage("python", 100.0, is_waited_out=False), [0, 3600])[0] == [ToolStatus.UNAVAILABLE] * 2


def test_an_answer_ends_the_outage():
    outage = Outage("python", 100.0, is_waited_out=False)
    assert len(calls(outage, [0, 50, 20, 40, 50], lambda now: 60 < now < 80)[0]) == 5


@pytest.mark.parametrize("settings", [{"max_unavailable_s": -1.0}, {"max_unavailable_s": math.nan}], ids=str)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match="`max_unavailable_s` must not be negative"):
        ToolRuntime(tools=[], **settings)


def test_the_runtime_passes_an_outage_on():
    async def away(text: str) -> str:
        """Answer nothing."""
        raise ToolUnavailableError("down.")

    runtime = ToolRuntime(tools=[away], max_unavailable_s=0.0)
    with pytest.raises(ToolOutageError, match="down"):
        asyncio.run(runtime.call(ToolCall(tool="away", text="x"), make_context()))


@pytest.mark.parametrize(("result", "is_scored"), [(HERE, True), (AWAY, False)], ids=["here", "away"])
def test_a_trajectory_without_its_tool_is_not_scored(result, is_scored):
    async def right(_):
        return RewardOutput(reward=1.0, is_correct=True, is_well_formed=True)

    call = ToolCall(tool="python", text="1")
    sample = RewardInput(
        question=make_context().question, response_text="x", tool_calls=(call,), tool_results=(result,)
    )
    assert asyncio.run(score(right, sample, ScoringSettings())).is_scored is is_scored
