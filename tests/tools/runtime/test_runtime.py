"""The runtime: every way a tool can fail becomes an observation; deadlines, limits, cancellation."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import (
    ToolCall,
    ToolContext,
    ToolLimits,
    ToolResult,
    ToolRunner,
    ToolSpec,
    ToolStatus,
)
from aepo_lightning.errors import ToolError, ToolTimeoutError
from aepo_lightning.tools import ToolRuntime
from tests.support.skipped_time import run_skipping

CONTEXT = ToolContext(question=Question(question_id="q", messages=(), answers=("x",)), call_index=0)


@dataclass
class ScriptedTool:
    """A tool that does what a test wants."""

    behave: Callable[[str], Awaitable[Any]]
    name: str = "probe"
    limits: ToolLimits = field(default_factory=ToolLimits)

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(name=self.name, limits=self.limits)

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> Any:
        assert context is CONTEXT
        return await self.behave(arguments["text"])


async def echo(text):
    return text


async def sleep_long(_):
    await asyncio.sleep(30)
    return "never"


def answer_with(value):
    async def behave(_):
        return value

    return behave


def fail_with(error):
    async def behave(_):
        raise error

    return behave


def run(behave, *, text="hello", tool="probe", problem="", **settings) -> ToolResult:
    runtime = ToolRuntime(tools=[ScriptedTool(behave)], **settings)
    return asyncio.run(runtime.call(ToolCall(tool=tool, text=text, problem=problem), CONTEXT))


def test_a_good_answer_passes_unchanged():
    result = run(answer_with("  two\nlines "))
    assert (result.text, result.status, result.is_truncated) == ("  two\nlines ", ToolStatus.OK, False)


@pytest.mark.parametrize(
    "behave, status, text",
    [
        pytest.param(fail_with(ToolError("no quota")), ToolStatus.ERROR, "failed: no quota", id="tool-error"),
        pytest.param(fail_with(KeyError("k")), ToolStatus.ERROR, "failed: KeyError: 'k'", id="bug"),
        pytest.param(fail_with(TimeoutError("slow")), ToolStatus.TIMEOUT, "failed: TimeoutError: slow", id="own"),
        pytest.param(fail_with(ToolTimeoutError("slow")), ToolStatus.TIMEOUT, "failed: slow", id="own-tool-timeout"),
        pytest.param(answer_with(None), ToolStatus.ERROR, "it returned NoneType instead of text", id="none"),
        pytest.param(answer_with(b"x"), ToolStatus.ERROR, "it returned bytes instead of text", id="bytes"),
        pytest.param(lambda text: text, ToolStatus.ERROR, "failed: TypeError", id="not-awaitable"),
        pytest.param(answer_with(""), ToolStatus.EMPTY, "Tool(probe) returned empty output.", id="empty"),
        pytest.param(answer_with(" \n"), ToolStatus.EMPTY, "Tool(probe) returned empty output.", id="blank"),
    ],
)
def test_a_failing_tool_becomes_an_observation(behave, status, text):
    result = run(behave)
    assert result.status == status
    assert text in result.text
    assert result.text.startswith("Tool(probe)" if status == ToolStatus.EMPTY else "Error: Tool(probe) ")


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [(TimeoutError("slow"), True), (ToolTimeoutError("slow"), False), (ToolError("no"), False)],
    ids=["service", "program", "error"],
)
def test_a_program_that_takes_too_long_is_no_outage(error, is_outage):
    assert run(fail_with(error)).is_outage is is_outage


@pytest.mark.parametrize(
    "call, status, text",
    [
        pytest.param({"tool": "browse"}, ToolStatus.UNKNOWN_TOOL, "Unknown tool 'browse'", id="unknown"),
        pytest.param({"tool": "x" * 999}, ToolStatus.UNKNOWN_TOOL, "Available tools: probe.", id="long-name"),
        pytest.param(
            {"tool": "", "text": "", "problem": "no opening tag"}, ToolStatus.MALFORMED, "no opening tag", id="m"
        ),
        pytest.param({"problem": "not closed"}, ToolStatus.MALFORMED, "Malformed call: not closed", id="problem"),
        pytest.param({"text": ""}, ToolStatus.MALFORMED, "empty call", id="empty"),
        pytest.param({"text": " \n"}, ToolStatus.MALFORMED, "empty call", id="blank"),
    ],
)
def test_a_call_that_cannot_run_is_answered_without_running(call, status, text):
    result = run(fail_with(AssertionError("must not run")), **call)
    assert result.status == status
    assert text in result.text
    assert len(result.text) < 200
    assert result.duration_s == 0


def test_without_tools_every_call_is_unknown():
    result = asyncio.run(ToolRuntime(tools=()).call(ToolCall(tool="search", text="q"), CONTEXT))
    assert result.text == "Error: Unknown tool 'search'. Available tools: none."


def test_the_deadline_cancels_the_tool():
    events = []

    async def behave(_):
        try:
            await asyncio.sleep(30)
        finally:
            events.append("cancelled")

    result = run(behave, timeout_s=0.05)
    assert events == ["cancelled"]
    assert (result.status, result.text) == (ToolStatus.TIMEOUT, "Error: Tool(probe) timed out after 0.05 s.")
    assert 0.05 <= result.duration_s < 25, "the tool would sleep for 30 s"


@pytest.mark.parametrize("last_words", [None, ToolError("interrupted")], ids=["answers", "raises"])
def test_a_tool_that_swallows_its_cancellation_still_timed_out(last_words):
    async def behave(_):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            if last_words is not None:
                raise last_words from None
        return "late"

    assert run(behave, timeout_s=0.05).status == ToolStatus.TIMEOUT


def test_the_deadline_starts_when_the_call_gets_its_slot():
    async def behave(text):
        await asyncio.sleep(1.0)
        return text

    async def both():
        runtime = ToolRuntime(tools=[ScriptedTool(behave)], timeout_s=1.75, max_concurrent_calls=1)
        calls = (runtime.call(ToolCall(tool="probe", text=text), CONTEXT) for text in "ab")
        return await asyncio.gather(*calls), asyncio.get_running_loop().time()

    # One after the other takes 2 s, more than the deadline of 1.75 s; each alone takes 1 s.
    results, wall_s = run_skipping(both())
    assert [result.text for result in results] == ["a", "b"]
    assert wall_s == 2.0


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_calls_run_at_once_than_allowed(limit):
    running, most = 0, 0

    async def behave(text):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return text

    async def many():
        runtime = ToolRuntime(tools=[ScriptedTool(behave)], max_concurrent_calls=limit)
        calls = (runtime.call(ToolCall(tool="probe", text=str(i)), CONTEXT) for i in range(8))
        return await asyncio.gather(*calls)

    assert [result.text for result in asyncio.run(many())] == [str(i) for i in range(8)]
    assert most == limit


def test_cancellation_passes_through_and_frees_the_slot():
    async def cancel_one():
        runtime = ToolRuntime(tools=[ScriptedTool(sleep_long), ScriptedTool(echo, "echo")], max_concurrent_calls=1)
        running = asyncio.create_task(runtime.call(ToolCall(tool="probe", text="x"), CONTEXT))
        queued = asyncio.create_task(runtime.call(ToolCall(tool="probe", text="x"), CONTEXT))
        await asyncio.sleep(0.01)
        for task in (queued, running):
            task.cancel()
            with pytest.raises(asyncio.CancelledError, match=r"^$"):
                await task
        return await runtime.call(ToolCall(tool="echo", text="free"), CONTEXT)

    assert asyncio.run(cancel_one()).text == "free"


def test_one_runtime_serves_several_event_loops_and_keeps_none():
    runtime = ToolRuntime(tools=[ScriptedTool(echo)], max_concurrent_calls=1)

    async def contended():
        return await asyncio.gather(*(runtime.call(ToolCall(tool="probe", text=text), CONTEXT) for text in "abc"))

    for _ in range(3):
        assert [result.text for result in asyncio.run(contended())] == ["a", "b", "c"]
    assert len(runtime._loops) == 1


@pytest.mark.parametrize("num_chars", [9, 10, 11, 100_000])
def test_long_results_are_cut_and_say_so(num_chars):
    result = run(answer_with("x" * num_chars), max_result_chars=10)
    note = f"\n[{num_chars - 10} of {num_chars} characters cut]" if num_chars > 10 else ""
    assert result.text == "x" * min(num_chars, 10) + note
    assert result.is_truncated == (num_chars > 10)


def test_long_failures_are_cut_too():
    result = run(fail_with(ToolError("y" * 100)), max_result_chars=40)
    assert result.is_truncated
    assert result.text.endswith("characters cut]")


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer():
    assert run(answer_with("a\ud800b")).text == "a?b"


def test_it_is_a_tool_runner_that_names_its_tools():
    runtime = ToolRuntime(tools=[ScriptedTool(echo, "search"), ScriptedTool(echo, "python")])
    assert isinstance(runtime, ToolRunner)
    assert runtime.tool_names == ("search", "python")


@pytest.mark.parametrize(
    "names, settings, message",
    [
        pytest.param(["a", "b", "a"], {}, "distinct names, but got 'a' twice", id="duplicate"),
        pytest.param(["Search"], {}, r"must match \[a-z_\]\[a-z0-9_\]\*, but got 'Search'", id="upper-case"),
        pytest.param([""], {}, "must match", id="empty"),
        pytest.param(["a\n"], {}, "must match", id="line-break"),
        pytest.param(["a"], {"timeout_s": 0.0}, "`timeout_s` must be positive", id="no-time"),
        pytest.param(["a"], {"timeout_s": float("inf")}, "`timeout_s` must be positive and finite", id="for-ever"),
        pytest.param(["a"], {"max_result_chars": 0}, "`max_result_chars` must be at least 1", id="no-chars"),
        pytest.param(["a"], {"max_concurrent_calls": 0}, "`max_concurrent_calls` must be", id="no-slots"),
    ],
)
def test_settings_without_meaning_are_refused(names, settings, message):
    with pytest.raises(ValueError, match=message):
        ToolRuntime(tools=[ScriptedTool(echo, name) for name in names], **settings)
