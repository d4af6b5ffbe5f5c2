"""Sessions with MCP servers that hang, babble or die: who waits for whom, and what is left behind."""

import asyncio
import logging
import sys
import threading

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolLimits, ToolStatus
from aepo_lightning.errors import ConfigError, ToolUnavailableError
from aepo_lightning.tools import MCPServer, ToolRuntime, mcp_tools
from tests.support.extras import needs
from tests.support.paths import SUPPORT
from tests.support.processes import is_running, wait_until
from tests.support.tool_parts import make_context

needs("mcp", "mcp")

EXAMPLE = [sys.executable, str(SUPPORT / "mcp_example.py")]
RAW = [sys.executable, str(SUPPORT / "mcp_raw.py")]


def raw(folder, mode, **settings):
    return MCPServer([*RAW, str(folder), mode], **settings)


def call(runtime, name, context=None, **arguments):
    return runtime.call(ToolCall(tool=name, text="", arguments=arguments), context or make_context())


def test_a_call_that_hangs_takes_no_other_call_on_its_session_with_it():
    server = MCPServer(EXAMPLE, num_sessions=1)
    hasty = ToolRuntime(tools=[mcp_tools(server, ["nap"], limits=ToolLimits(deadline_s=0.5))])
    patient = ToolRuntime(tools=[mcp_tools(server, ["nap"])])

    async def run():
        return await asyncio.gather(call(hasty, "nap", seconds=5), call(patient, "nap", seconds=1.5))

    hung, good = asyncio.run(run())
    assert (hung.status, good.status, good.text) == (ToolStatus.TIMEOUT, ToolStatus.OK, "awake")
    server.close()


@pytest.mark.slow
def test_a_call_given_up_while_its_session_opens_leaves_no_process(tmp_path):
    server = raw(tmp_path, "pair", num_sessions=1, connect_timeout_s=2.0)

    async def run():
        async with asyncio.timeout(0.5):
            await server.call("Echo", {})

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    wait_until(lambda: list(tmp_path.iterdir()), 60.0)
    (started,) = tmp_path.iterdir()
    wait_until(lambda: not is_running(started.name), 60.0)
    server.close()


@pytest.mark.slow
def test_a_session_that_does_not_open_keeps_nobody_from_those_that_are_open(tmp_path):
    server = raw(tmp_path, "second-hangs", num_sessions=2, connect_timeout_s=30.0)

    async def run():
        await server.call("Echo", {})
        async with asyncio.timeout(20):
            return await asyncio.gather(*(server.call("Echo", {}) for _ in range(5)))

    assert len({result.content[0].text for result in asyncio.run(run())}) == 1
    server.close()


def test_chains_open_their_sessions_beside_each_other(tmp_path):
    """Each server of the pair answers only when the other has been started, too."""
    server = raw(tmp_path, "pair", connect_timeout_s=20.0)

    async def run():
        return await asyncio.gather(*(server.call("Echo", {}, session) for session in ("a", "b")))

    assert len({result.content[0].text for result in asyncio.run(run())}) == 2
    server.close()


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_is_left_of_a_closed_server(tmp_path, how):
    before = threading.active_count()
    server = raw(tmp_path, "good")
    asyncio.run(server.call("Echo", {}))
    asyncio.run(server.call("Echo", {}, "own"))
    pids = [each.name for each in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(map(is_running, pids))
    if how == "close":
        server.close()
        server.close()
    del server
    assert not any(map(is_running, pids))
    assert threading.active_count() == before


def test_a_closed_server_answers_again_also_when_many_ask(tmp_path):
    server = raw(tmp_path, "good", num_sessions=1)

    async def many():
        return [result.content[0].text for result in await asyncio.gather(*(server.call("Echo", {}) for _ in range(5)))]

    first = asyncio.run(many())
    server.close()
    second = asyncio.run(many())
    assert len({*first, *second}) == 2
    server.close()


def test_a_close_cuts_calls_off(tmp_path):
    server = MCPServer(EXAMPLE, num_sessions=1)

    async def run():
        task = asyncio.create_task(server.call("nap", {"seconds": 30}))
        await asyncio.to_thread(server.list_tools)
        await asyncio.to_thread(server.close)
        async with asyncio.timeout(10):
            await task

    with pytest.raises((ToolUnavailableError, asyncio.CancelledError)):
        asyncio.run(run())


@pytest.mark.slow
def test_a_server_that_never_lists_its_tools_is_given_up(tmp_path):
    server = raw(tmp_path, "silent", connect_timeout_s=5.0)
    with pytest.raises(ToolUnavailableError, match="the server failed"):
        mcp_tools(server)
    server.close()


def test_what_a_server_babbles_between_its_answers_is_passed_over(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    server = raw(tmp_path, "good")
    tools = mcp_tools(server)  # on four pages
    assert [each.remote_name for each in tools] == [
        *("Echo", "9lives", "far", "letters", "old", "anything", "picture"),
    ]
    assert [each.spec.name for each in tools][:2] == ["echo", "_9lives"]
    text = asyncio.run(call(ToolRuntime(tools=[tools]), "picture")).text
    pid, rest = text.split("\n", 1)
    assert pid.isdigit()
    assert rest == "[image image/png]\n[resource]\ninside\n[resource_link file:///z]"
    server.close()


def test_schemas_are_translated_or_left_to_the_server(tmp_path, caplog):
    server = raw(tmp_path, "good")
    runtime = ToolRuntime(tools=[mcp_tools(server)])

    async def run():
        return [
            await call(runtime, "_9lives", cat={"name": "Tom"}, age=None),
            await call(runtime, "_9lives", cat={}, age=None),
            await call(runtime, "_9lives", cat={"name": "Tom"}, age="old"),
            *[await call(runtime, name, a="?") for name in ("far", "letters", "old", "anything")],
        ]

    statuses = [result.status for result in asyncio.run(run())]
    assert statuses == [ToolStatus.OK, ToolStatus.MALFORMED, ToolStatus.MALFORMED, *[ToolStatus.OK] * 4]
    left = [record.getMessage() for record in caplog.records if "left to the server" in record.getMessage()]
    assert [text.split()[2] for text in left] == ["far", "letters", "old"]
    server.close()


@pytest.mark.parametrize("pattern", ["a{99999999999999}", "(?u)(?a)", "(" * 2000], ids=["repeats", "flags", "deep"])
def test_a_pattern_that_cannot_be_compiled_is_left_to_the_server(pattern, monkeypatch):
    server = MCPServer(EXAMPLE)
    schema = {"properties": {"a": {"pattern": pattern}}}
    found = [type("Odd", (), {"name": "odd", "description": "", "input_schema": schema})]
    monkeypatch.setattr(server, "list_tools", lambda: found)
    assert mcp_tools(server)[0].spec.parameters == {"type": "object", "properties": {"a": {}}}


def test_tools_whose_names_become_one_are_refused(tmp_path, monkeypatch):
    server = raw(tmp_path, "good")
    twin = type("Twin", (), {"name": "echo", "description": "", "input_schema": {}})
    found = [*server.list_tools(), twin]
    monkeypatch.setattr(server, "list_tools", lambda: found)
    with pytest.raises(ConfigError, match=r"several tools of .* become \['echo'\]"):
        mcp_tools(server)
    server.close()


def test_a_tool_is_told_when_another_one_lost_the_session_that_both_remember_in():
    server = MCPServer(EXAMPLE)
    runtime = ToolRuntime(tools=[mcp_tools(server, ["note", "die"], is_stateful=True)])
    context = make_context()

    async def run():
        first = await call(runtime, "note", context, text="a")
        dead = await call(runtime, "die", context, code=3)
        return first, dead, await call(runtime, "note", context, text="b")

    first, dead, then = asyncio.run(run())
    assert (first.text, dead.status, then.status) == ("a", ToolStatus.UNAVAILABLE, ToolStatus.UNAVAILABLE)
    assert "was lost" in then.text
    server.close()


SECRET = "sk-0123456789"


@pytest.mark.parametrize(
    "settings",
    [
        {"url": f"http://127.0.0.1:9/{SECRET}/mcp?key={SECRET}"},
        {"url": f"http://user:{SECRET}@127.0.0.1:9/mcp"},
        {"command": [sys.executable, "-c", "print('no protocol')", "--key", SECRET], "env": {"KEY": SECRET}},
        {"command": ["no-such-program", SECRET]},
    ],
    ids=["path", "user", "argument", "missing"],
)
def test_secrets_stand_in_no_message(settings, caplog):
    caplog.set_level(logging.WARNING)
    server = MCPServer(**settings, connect_timeout_s=20.0)
    with pytest.raises(ToolUnavailableError, match="could not be reached") as caught:
        mcp_tools(server)
    messages = [str(caught.value), server.name, server.identity, repr(server)]
    messages += [record.getMessage() for record in caplog.records if record.name.startswith("aepo")]
    assert "could not be reached" in messages[-1]
    assert not any(SECRET in message for message in messages)
    server.close()


def test_servers_that_differ_in_their_secrets_only_are_not_taken_for_one():
    one, other = (MCPServer(url=f"http://127.0.0.1:9/mcp?key={key}") for key in "ab")
    assert one.name == other.name
    assert one.identity != other.identity
