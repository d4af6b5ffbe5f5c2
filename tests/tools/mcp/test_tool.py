"""Tools of a real MCP server, over stdio and HTTP, in good and in bad health."""

import asyncio
import socket
import subprocess
import sys
import time

import pytest

from aepo_lightning.contracts.tool import RetryPolicy, Tool, ToolCall, ToolLimits, ToolStatus
from aepo_lightning.errors import ConfigError, ToolUnavailableError
from aepo_lightning.tools import MCPServer, ToolRuntime, mcp_tools
from tests.support.extras import needs
from tests.support.paths import SUPPORT
from tests.support.tool_parts import make_context, talk

needs("mcp", "mcp")

SCRIPT = str(SUPPORT / "mcp_example.py")
COMMAND = [sys.executable, SCRIPT]
NAMES = ["die", "fail", "flood", "nap", "note", "nothing_needed", "say_it"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def stdio():
    server = MCPServer(COMMAND)
    yield server
    server.close()


@pytest.fixture(scope="module")
def http():
    port = free_port()
    process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    server = MCPServer(url=f"http://127.0.0.1:{port}/mcp")
    yield server
    server.close()
    process.kill()  # asked politely, it would wait for the nap that no client wants any more
    process.wait()


@pytest.fixture(params=["stdio", "http"])
def server(request):
    return request.getfixturevalue(request.param)


def runtime_of(server, **settings):
    return ToolRuntime(tools=[mcp_tools(server, **settings)], timeout_s=30.0)


def ask(runtime, name, text="", arguments=None):
    call = ToolCall(tool=name, text=text, arguments=arguments)
    return asyncio.run(runtime.call(call, make_context()))


def test_the_servers_tools_become_tools(server):
    tools = mcp_tools(server)
    assert all(isinstance(each, Tool) for each in tools)
    assert sorted(each.spec.name for each in tools) == NAMES
    (say,) = mcp_tools(server, ["Say-It"], prefix="my_")
    assert (say.spec.name, say.spec.description, say.spec.text_parameter) == ("my_say_it", "Say something.", "text")
    assert say.spec.parameters["required"] == ["text"]


def test_calls_are_answered_with_names_or_with_text(server):
    runtime = runtime_of(server)
    assert ask(runtime, "say_it", arguments={"text": "hi", "times": 2}).text == "hi hi"
    assert ask(runtime, "say_it", text="hi").text == "hi"
    assert ask(runtime, "nothing_needed").text.replace("\n", "").replace(" ", "") == '{"answer":42}'


def test_a_tool_that_fails_says_why_and_bad_arguments_do_not_reach_it(server):
    runtime = runtime_of(server)
    failed = ask(runtime, "fail", arguments={"reason": "no such thing"})
    assert failed.status is ToolStatus.ERROR
    assert "no such thing" in failed.text
    assert ask(runtime, "nap", arguments={"seconds": "long"}).status is ToolStatus.MALFORMED


def test_one_server_serves_several_event_loops_and_many_calls(server):
    runtime = runtime_of(server)

    async def many():
        calls = (ToolCall(tool="say_it", text="", arguments={"text": str(n)}) for n in range(30))
        return await asyncio.gather(*(runtime.call(call, make_context()) for call in calls))

    for _ in range(2):
        assert [result.text for result in asyncio.run(many())] == [str(n) for n in range(30)]


def test_a_hung_call_is_cut_off_and_the_next_one_is_answered(server):
    runtime = ToolRuntime(tools=[mcp_tools(server, limits=ToolLimits(deadline_s=1.0))])
    assert ask(runtime, "nap", arguments={"seconds": 60}).status is ToolStatus.TIMEOUT
    patient = runtime_of(server)
    assert ask(patient, "say_it", text="hi").text == "hi"


def test_a_server_that_dies_is_started_again():
    server = MCPServer(COMMAND, num_sessions=1)
    runtime = runtime_of(server)
    dead = ask(runtime, "die", arguments={"code": 3})
    assert dead.status is ToolStatus.UNAVAILABLE
    assert ask(runtime, "say_it", text="hi").text == "hi"
    retrying = runtime_of(server, limits=ToolLimits(retry=RetryPolicy(max_attempts=2, backoff_s=0.0)))
    assert ask(retrying, "die", arguments={"code": 3}).num_attempts == 2
    server.close()


def test_a_flood_is_cut(stdio):
    runtime = ToolRuntime(tools=[mcp_tools(stdio)], max_result_chars=100)
    result = ask(runtime, "flood", arguments={"megabytes": 2})
    assert result.is_truncated
    assert len(result.text) < 200


def test_a_flood_beyond_the_deadline_costs_its_own_call_only(stdio):
    """The thread that reads 20 MB is not the one that the chains run in."""
    runtime = ToolRuntime(tools=[mcp_tools(stdio, limits=ToolLimits(deadline_s=2.0))])

    async def run():
        flood = asyncio.create_task(
            runtime.call(ToolCall(tool="flood", text="", arguments={"megabytes": 20}), make_context())
        )
        gaps = []
        while not flood.done():
            before = time.thread_time()
            await asyncio.sleep(0.01)
            gaps.append(time.thread_time() - before)
        return flood.result(), max(gaps)

    result, longest = asyncio.run(run())
    assert result.status in (ToolStatus.TIMEOUT, ToolStatus.OK)
    assert longest < 1.5
    assert ask(runtime_of(stdio), "say_it", text="hi").text == "hi"


def test_chains_have_sessions_of_their_own_where_the_server_remembers():
    server = MCPServer(COMMAND)
    (tool,) = mcp_tools(server, ["note"], is_stateful=True)
    runtime = ToolRuntime(tools=[tool])

    class Named:
        name = "note"

    async def run():
        first, second = make_context(path=("r", 0)), make_context(path=("r", 1))
        first = await talk(runtime, Named, first, "a", "b")
        second = await talk(runtime, Named, second, "c")
        problem = runtime.branch_problem(first.history)
        await runtime.release(first)
        await runtime.release(second)
        return [result.text for chain in (first, second) for _, result in chain.history], problem

    texts, problem = asyncio.run(run())
    assert texts == ["a", "a,b", "c"]
    assert "can neither copy nor replay" in problem
    server.close()


@pytest.mark.parametrize(
    "settings",
    [{"command": [sys.executable, "-c", "print('no protocol')"]}, {"url": "http://127.0.0.1:9/mcp"}],
    ids=["other-program", "nobody"],
)
def test_a_server_that_is_none_is_named(settings):
    server = MCPServer(**settings, connect_timeout_s=20.0)
    with pytest.raises(ToolUnavailableError, match="the server could not be reached"):
        mcp_tools(server)
    server.close()


def test_names_that_the_server_does_not_have_are_refused(stdio):
    with pytest.raises(ConfigError, match=r"\['sing'\] are not\. It has \['Say-It', 'die'"):
        mcp_tools(stdio, ["sing"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"command": ["x"], "url": "y"}, {"url": "y", "num_sessions": 0}, {"url": "y", "connect_timeout_s": 0.0}],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match="must be"):
        MCPServer(**settings)
