"""Functions where tools are asked for: taken as they are, named, limited."""

import asyncio

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolLimits
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import FunctionTool, ToolRuntime, function_tool, tool
from tests.support.function_tools import loud, who
from tests.support.plain_functions import awaited, plain
from tests.support.tool_parts import make_context


@pytest.mark.parametrize("function", [plain, awaited], ids=["plain", "async"])
def test_the_runtime_takes_a_function_as_if_it_were_decorated(function):
    runtime = ToolRuntime(tools=[function, [who]])
    assert runtime.specs == (tool(function).spec, who.spec)
    call = ToolCall(tool=function.__name__, text="", arguments={"a": 1})
    assert asyncio.run(runtime.call(call, make_context())).text == "2"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda text: text, "'<lambda>' must have a docstring"),
        (asyncio.sleep, "'sleep' must have a docstring"),
        (FunctionTool, "must be a function or a `Tool`, but got <class .*FunctionTool'>. Pass an instance."),
    ],
    ids=["lambda", "no-hints", "class"],
)
def test_the_runtime_names_what_cannot_be_a_tool(what, message):
    with pytest.raises(ConfigError, match=message):
        ToolRuntime(tools=[what])


def test_a_function_gets_another_name_and_other_limits():
    other = function_tool(loud, name="louder", limits={"max_result_chars": 5})
    assert (other.spec.name, other.spec.version, other.spec.limits) == ("louder", "3", ToolLimits(max_result_chars=5))
    assert function_tool(plain).spec == tool(plain).spec
    assert function_tool(loud).spec == loud.spec


def test_limits_may_be_a_mapping():
    assert tool(limits={"deadline_s": 1.0})(plain).spec.limits.deadline_s == 1.0
