"""Functions as tools: hints and docstring become the schema, and calls run without holding others up."""

import asyncio
import threading
import time

import pytest

from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.protocols import Tool
from aepo_lightning.tool_spec import ToolLimits
from aepo_lightning.tools import ToolRuntime, tool
from aepo_lightning.types import ToolCall, ToolStatus
from tests.tools.parts import make_context


@tool
def multiply(a: float, b: float = 2.0) -> float:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


@tool(name="shout", limits=ToolLimits(deadline_s=0.1), version="3")
async def loud(text: str) -> str:
    """Say it loudly.

    Args:
        text: What to say.
    """
    if text == "hang":
        await asyncio.sleep(30)
    return text.upper()


@tool
def who(text: str, context) -> str:
    """Name the question.

    Args:
        text: A greeting.
    """
    if text == "fail":
        raise ToolError("nobody")
    return f"{text} {context.question.question_id} {threading.current_thread() is threading.main_thread()}"


def ask(each, text="", **arguments):
    call = ToolCall(tool=each.spec.name, text=text, arguments=arguments or None)
    return asyncio.run(ToolRuntime(tools=[each]).call(call, make_context()))


def test_hints_and_docstring_become_the_schema():
    assert isinstance(multiply, Tool)
    assert multiply.spec.name == "multiply"
    assert multiply.spec.description == "Multiply two numbers."
    assert multiply.spec.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "number", "description": "The first."},
            "b": {"type": "number", "description": "The second."},
        },
        "required": ["a"],
    }


def test_a_function_is_called_with_its_arguments():
    assert ask(multiply, a=3, b=4).text == "12"
    assert ask(multiply, a=3).text == "6.0"


def test_arguments_that_do_not_fit_do_not_reach_the_function():
    assert ask(multiply, a="three").status is ToolStatus.MALFORMED
    assert ask(multiply, text="three").status is ToolStatus.MALFORMED


def test_text_between_tags_is_the_first_parameter():
    assert ask(loud, text="hello").text == "HELLO"


def test_name_limits_and_version_can_be_given():
    assert (loud.spec.name, loud.spec.version) == ("shout", "3")
    assert ask(loud, text="hang").status is ToolStatus.TIMEOUT


def test_a_plain_function_runs_in_a_thread_and_may_see_the_chain():
    assert who.spec.parameters["properties"].keys() == {"text"}
    assert ask(who, text="hi").text == "hi q False"


def test_a_tool_error_reaches_the_model_with_its_message():
    result = ask(who, text="fail")
    assert (result.status, result.text) == (ToolStatus.ERROR, "Error: Tool(who) failed: nobody")


def test_slow_functions_run_beside_each_other():
    @tool
    def nap(text: str) -> str:
        """Sleep.

        Args:
            text: Ignored.
        """
        time.sleep(0.2)
        return text

    runtime = ToolRuntime(tools=[nap])

    async def run():
        started = asyncio.get_running_loop().time()
        calls = (runtime.call(ToolCall(tool="nap", text="x"), make_context()) for _ in range(4))
        await asyncio.gather(*calls)
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) < 0.6  # one after another they would take 0.8 s


def test_functions_that_hang_hold_nobody_up_and_the_loop_ends_without_them():
    release = threading.Event()

    @tool(limits=ToolLimits(deadline_s=0.2, max_concurrent_calls=100))
    def wait(text: str) -> str:
        """Wait.

        Args:
            text: Whether to.
        """
        if text == "hang":
            release.wait(60)
        return text

    runtime = ToolRuntime(tools=[wait])

    async def run():
        calls = [ToolCall(tool="wait", text=text) for text in ["hang"] * 50 + ["go"]]
        return await asyncio.gather(*(runtime.call(call, make_context()) for call in calls))

    statuses = [result.status for result in asyncio.run(run())]
    release.set()
    assert statuses == [ToolStatus.TIMEOUT] * 50 + [ToolStatus.OK]


def undocumented(a: int):
    return a


def unhinted(a):
    """Do.

    Args:
        a: Number.
    """
    return a


def without_parameters():
    """Do."""


@pytest.mark.parametrize("function", [undocumented, unhinted, without_parameters])
def test_a_function_that_cannot_be_described_is_refused(function):
    with pytest.raises(ConfigError, match=f"'{function.__name__}' must have a"):
        tool(function)
