"""The python tool behind its wall: what the model reads, state that follows branches, and refusal without a wall."""

import asyncio
import logging
import shutil
from dataclasses import replace

import pytest

from aepo_lightning.contracts.tool import StatefulTool, ToolCall, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import PythonTool, ToolRuntime
from tests.support.tool_parts import answers, make_context, talk

NEEDS_BUBBLEWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


@pytest.fixture(scope="module")
def tool():
    tool = PythonTool(timeout_s=25.0, memory_mb=512, num_workers=2, isolation="bubblewrap", max_output_chars=300)
    yield tool
    tool.shut_down()


@pytest.fixture(scope="module")
def stateful():
    tool = PythonTool(timeout_s=25.0, memory_mb=512, num_workers=2, isolation="bubblewrap", is_stateful=True)
    yield tool
    tool.shut_down()


def ask(tool, code, context=None):
    runtime = ToolRuntime(tools=[tool], timeout_s=30.0)
    return asyncio.run(runtime.call(ToolCall(tool="python", text=code), context or make_context()))


@NEEDS_BUBBLEWRAP
@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("print(6 * 7)", ToolStatus.OK, "42"),
        ("6 * 7", ToolStatus.OK, "42"),
        ("import sympy\nsympy.factor(sympy.Symbol('x')**2 - 1)", ToolStatus.OK, "(x - 1)*(x + 1)"),
        ("x = 1", ToolStatus.EMPTY, "returned empty output"),
        ("1 / 0", ToolStatus.ERROR, "ZeroDivisionError"),
        ("x = bytearray(10**10)", ToolStatus.ERROR, "more memory than it may"),
        ("while True: print('x' * 1000)", ToolStatus.OK, "printed too much and was stopped"),
        ("open('/etc/shadow').read()", ToolStatus.ERROR, "Error"),
        ("import os; os.fork()", ToolStatus.ERROR, "PermissionError"),
        ("import socket; socket.socket()", ToolStatus.ERROR, "PermissionError"),
    ],
    ids=["print", "echo", "sympy", "nothing", "error", "memory", "flood", "file", "fork", "network"],
)
def test_what_the_model_reads(tool, code, status, text):
    result = ask(tool, code)
    assert (result.status, text in result.text) == (status, True), result.text
    assert len(result.text) <= 400


@NEEDS_BUBBLEWRAP
def test_the_model_reads_that_its_code_did_not_end():
    hasty = PythonTool(timeout_s=1.0, num_workers=1, isolation="bubblewrap")
    result = ask(hasty, "while True: pass")
    hasty.shut_down()
    assert (result.status, "did not end within" in result.text) == (ToolStatus.TIMEOUT, True), result.text


@NEEDS_BUBBLEWRAP
def test_random_numbers_belong_to_the_place_in_the_rollout(tool):
    code = "import random; random.random()"
    places = [make_context(path=("r", number)) for number in (0, 0, 1)]
    first, again, other = (ask(tool, code, context).text for context in places)
    assert first == again != other


@NEEDS_BUBBLEWRAP
def test_state_is_kept_along_a_chain_and_follows_its_branches(stateful):
    assert isinstance(stateful, StatefulTool)

    class Named:
        name = "python"

    runtime = ToolRuntime(tools=[stateful], timeout_s=30.0)

    async def run():
        trunk = await talk(runtime, Named, make_context(), "x = [1]", "x.append(2); x")
        branch = replace(trunk, seed_path=("r", 0, "b", 2, 0))
        runtime.branch(trunk, branch)
        return await asyncio.gather(
            talk(runtime, Named, trunk, "x.append(3); x"), talk(runtime, Named, branch, "x.append(4); x")
        )

    trunk, branch = asyncio.run(run())
    assert answers(trunk)[1:] == ["[1, 2]", "[1, 2, 3]"]
    assert answers(branch)[1:] == ["[1, 2]", "[1, 2, 4]"]


def test_without_any_wall_the_run_is_refused_before_its_first_call(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = PythonTool()
    with pytest.raises(ConfigError, match=r"No isolation for model-written Python.*Install bubblewrap"):
        asyncio.run(ToolRuntime(tools=[tool]).start())
    tool.shut_down()


def test_having_no_wall_must_be_written_out_and_is_logged(caplog):
    tool = PythonTool(isolation="unsafe")
    with caplog.at_level(logging.WARNING):
        asyncio.run(ToolRuntime(tools=[tool]).start())
        asyncio.run(tool.start())
    assert caplog.text.count("no isolation") == 1, "once, and not at every rollout"
    assert ask(tool, "1 + 1").text == "2"
    tool.shut_down()
