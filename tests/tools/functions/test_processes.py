"""Plain functions as tools run in processes: a deadline holds, and whatever happens there is an observation here."""

import asyncio
import importlib
import os
import threading

import pytest

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import RetryPolicy, ToolCall, ToolLimits, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import ToolRuntime, tool
from tests.support import plain_functions
from tests.support.tool_parts import make_context


def ask(function, context=None, **arguments):
    (result,) = ask_all(function, [arguments], context)
    return result


def ask_all(function, calls, context=None):
    made = function if hasattr(function, "spec") else tool(function)
    runtime = ToolRuntime(tools=[made])

    async def run():
        asked = (ToolCall(tool=made.spec.name, text="", arguments=each) for each in calls)
        results = [await runtime.call(each, context or make_context()) for each in asked]
        await runtime.close()
        return results

    return asyncio.run(run())


def limited(function, deadline_s=1.0):
    return tool(limits=ToolLimits(deadline_s=deadline_s))(function)


HOGS = [
    (plain_functions.power, {"base": 7, "exponent": 10**9}),
    (plain_functions.match, {"pattern": "(a+)+$", "text": "a" * 40 + "b"}),
    (plain_functions.misbehave, {"how": "loop"}),
    (plain_functions.misbehave, {"how": "sleep"}),
]


@pytest.mark.parametrize(("function", "arguments"), HOGS, ids=["power", "regex", "loop", "sleep"])
def test_the_deadline_holds_and_neither_the_loop_nor_the_next_call_notices(function, arguments):
    made, next_tool = limited(function, 0.3), tool(plain_functions.look_up)
    runtime = ToolRuntime(tools=[made, next_tool])

    async def run():
        call = ToolCall(tool=made.spec.name, text="", arguments=arguments)
        hung = asyncio.create_task(runtime.call(call, make_context()))
        while not hung.done():
            await asyncio.sleep(0.01)
        after = await runtime.call(ToolCall(tool="look_up", text="a"), make_context())
        lag_s = runtime.metrics()["loop_lag_s"]
        await runtime.close()
        return hung.result(), after, lag_s

    hung, after, lag_s = asyncio.run(run())
    assert (hung.status, after.text) == (ToolStatus.TIMEOUT, "b")
    assert lag_s < 5.0  # the function alone would take minutes


@pytest.mark.parametrize(
    ("how", "status", "text"),
    [
        ("exit", ToolStatus.ERROR, "its process ended before it answered"),
        ("segfault", ToolStatus.ERROR, "its process ended before it answered"),
        ("leave", ToolStatus.ERROR, "the function tried to end the process"),
        ("interrupt", ToolStatus.ERROR, "the function raised KeyboardInterrupt"),
        ("key", ToolStatus.ERROR, "Error: Tool(misbehave) failed: KeyError: 'k'"),
        ("decode", ToolStatus.ERROR, "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        ("own", ToolStatus.ERROR, "QuotaError: no quota left"),
        ("none", ToolStatus.EMPTY, "returned empty output"),
        ("number", ToolStatus.OK, "7"),
    ],
)
def test_whatever_happens_there_is_an_observation_here_and_the_next_call_is_answered(how, status, text):
    result, after = ask_all(plain_functions.misbehave, [{"how": how}, {"how": "number"}])
    assert result.status is status
    assert text in result.text
    assert after.text == "7"


def test_a_long_answer_comes_whole():
    result = ask(tool(limits={"max_result_chars": 4_000_000})(plain_functions.misbehave), how="big")
    assert len(result.text) == 3_000_000


@pytest.mark.parametrize("name", ["QuotaError", "ConnectionError", "OSError"])
def test_errors_are_worth_another_attempt_by_their_names_and_those_of_their_bases(name):
    retry = RetryPolicy(max_attempts=2, backoff_s=0.0, errors=[name])
    result = ask(tool(limits=ToolLimits(retry=retry))(plain_functions.misbehave), how="own")
    assert result.num_attempts == 2


def test_the_chain_is_seen_there():
    context = make_context(question=Question(question_id="train-7", messages=(), answers=()))
    assert ask(plain_functions.chain, context, text="hi").text == "hi train-7 0"


def test_a_chain_that_cannot_be_sent_there_is_an_error_with_a_remedy():
    question = Question(question_id="q", messages=(), answers=(), metadata={"lock": threading.Lock()})
    result = ask(plain_functions.chain, make_context(question=question), text="hi")
    assert result.status is ToolStatus.ERROR
    assert "isolation=thread" in result.text


@pytest.mark.parametrize("function", [plain_functions.append, plain_functions.count], ids=["list", "global"])
def test_a_function_that_keeps_something_runs_here_and_the_log_says_why(function, caplog):
    before = len(plain_functions.CALLS) + plain_functions.COUNT
    assert ask(function, text="x").status is ToolStatus.OK
    assert len(plain_functions.CALLS) + plain_functions.COUNT == before + 1
    assert f"Tool({function.__name__}) runs in a thread, where no deadline can stop it, because it" in caplog.text


def test_what_cannot_be_sent_runs_here_unless_a_process_was_asked_for(caplog, tmp_path):
    with (tmp_path / "file").open("w") as file:

        def write(text: str) -> str:
            """Write."""
            return str(file.write(text))

        assert ask(write, text="abc").text == "3"
        assert "Tool(write) runs in a thread" in caplog.text
        with pytest.raises(ConfigError, match="must be a function that another process can load"):
            asyncio.run(tool(isolation="process")(write).start())


DECORATED = """
import sys
from aepo_lightning.tools import tool

@tool
def loaded(text: str) -> str:
    'Tell what is loaded.'
    return str([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_process_of_a_decorated_function_loads_nothing_that_it_does_not_use(tmp_path, monkeypatch):
    (tmp_path / "tells_what_is_loaded.py").write_text(DECORATED)
    monkeypatch.syspath_prepend(tmp_path)
    assert ask(importlib.import_module("tells_what_is_loaded").loaded, text="x").text == "[]"


@pytest.mark.parametrize("isolation", ["thread", "process", None])
def test_the_isolation_is_what_was_asked_for(isolation):
    process = ask(tool(isolation=isolation)(plain_functions.where), text="x").text
    assert (process == str(os.getpid())) == (isolation == "thread")


def test_an_unknown_isolation_is_refused():
    with pytest.raises(ConfigError, match="`isolation` of 'where' must be one of thread, process, jail, but got 'vm'"):
        tool(isolation="vm")(plain_functions.where)
