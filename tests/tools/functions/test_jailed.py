"""Functions in the jail: their source stands on its own, or is refused before anything runs."""

import ast
import asyncio
import math as mathematics
import sys
from collections import OrderedDict

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolLimits, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import ToolRuntime, tool
from aepo_lightning.tools.functions import jailed
from aepo_lightning.tools.functions.standalone import standalone_source
from aepo_lightning.tools.jail import PoolBusyError
from tests.support.tool_parts import make_context

FACTOR, TABLE, HOLDER = 3, {"a": [1, 2.5, None]}, object()


def _helper(number, depth=FACTOR):
    return number if depth == 0 else _helper(number * 2, depth - 1)


def compute(number: int, kind: "dict[str, int] | None" = None) -> str:
    """Compute."""
    return f"{_helper(number)} {mathematics.sqrt(16)} {TABLE['a']} {OrderedDict(a=FACTOR)} {len('abc')}"


def reads(path: str) -> str:
    """Read a file."""
    with open(path) as file:
        return file.read()


def fails(text: str) -> str:
    """Fail."""
    sys.stdout.write("to nobody")
    raise KeyError(text)


def hangs(text: str) -> str:
    """Hang."""
    while True:
        pass


def holds(text: str) -> str:
    """Use what cannot be written down."""
    return repr(HOLDER)


def sees(text: str, context) -> str:
    """Look around."""
    return text


async def waits(text: str) -> str:
    """Wait."""
    return text


def test_a_source_brings_what_it_refers_to():
    source = standalone_source(compute, "compute")
    names = {}
    exec(compile(ast.parse(source), "<source>", "exec"), names)
    assert names["compute"](5) == compute(5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (holds, "it refers to 'HOLDER', which is object"),
        (sees, "must be a plain function without `context`"),
        (waits, "must be a plain function without `context`"),
        (len, "must have a"),
    ],
)
def test_what_does_not_stand_on_its_own_is_refused_at_once(function, message):
    with pytest.raises(ConfigError, match=message):
        tool(isolation="jail")(function)


def test_all_calls_share_one_pool_and_one_that_is_full_is_no_fault_of_theirs(monkeypatch):
    made = []

    class FullPool:
        def __init__(self):
            made.append(self)

        async def start(self):
            pass

        async def run(self, *_, **__):
            raise PoolBusyError("full")

    monkeypatch.setattr(jailed, "_pools", {})
    monkeypatch.setattr(jailed, "PythonPool", FullPool)
    runtime = ToolRuntime(tools=[tool(isolation="jail")(each) for each in (reads, fails)])
    asked = [ToolCall(tool=name, text="x") for name in ("reads", "fails")]
    statuses = [asyncio.run(runtime.call(each, make_context())).status for each in asked]
    assert (statuses, len(made)) == ([ToolStatus.UNAVAILABLE] * 2, 1)


@pytest.mark.slow
def test_functions_are_called_behind_the_walls(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s")
    tools = [tool(isolation="jail")(each) for each in (compute, reads, fails)]
    tools.append(tool(isolation="jail", limits=ToolLimits(deadline_s=2.0))(hangs))
    runtime = ToolRuntime(tools=tools)

    async def run():
        calls = [
            ToolCall(tool="compute", text="", arguments={"number": 5}),
            ToolCall(tool="reads", text=str(secret)),
            ToolCall(tool="fails", text="k"),
            ToolCall(tool="hangs", text="x"),
            ToolCall(tool="compute", text="", arguments={"number": 1}),
        ]
        await runtime.start()
        return [await runtime.call(call, make_context()) for call in calls]

    computed, read, failed, hung, again = asyncio.run(run())
    assert computed.text == compute(5)
    assert "No such file" in read.text
    assert failed.text == "Error: Tool(fails) failed: KeyError: 'k'"
    assert [each.status for each in (read, failed, hung)] == [ToolStatus.ERROR, ToolStatus.ERROR, ToolStatus.TIMEOUT]
    assert again.status is ToolStatus.OK
