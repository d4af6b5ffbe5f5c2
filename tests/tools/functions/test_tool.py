"""Functions as tools: hints and docstring become the schema, and calls run without holding others up."""

import asyncio
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Literal, Optional

import pytest

from aepo_lightning.contracts.tool import Tool, ToolCall, ToolLimits, ToolSpec, ToolStatus
from aepo_lightning.errors import ConfigError
from aepo_lightning.tools import FunctionTool, ToolRuntime, tool
from tests.support.function_tools import loud, who
from tests.support.tool_parts import make_context


@tool(isolation="thread")
def multiply(a: float, b: float = 2.0) -> float:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


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


def test_a_function_with_isolation_thread_runs_in_one_and_may_see_the_chain():
    assert who.spec.parameters["properties"].keys() == {"text"}
    assert ask(who, text="hi").text == "hi q False"


def test_a_tool_error_reaches_the_model_with_its_message():
    result = ask(who, text="fail")
    assert (result.status, result.text) == (ToolStatus.ERROR, "Error: Tool(who) failed: nobody")


@tool(isolation="thread")
def search_nothing(text: str) -> str:
    """Look for something.

    Args:
        text: What.
    """
    return next(word for word in () if word == text)


@tool(isolation="thread")
def leave(text: str) -> str:
    """Go.

    Args:
        text: Where.
    """
    sys.exit(text)


@pytest.mark.parametrize("function", [search_nothing, leave], ids=["stop_iteration", "exit"])
def test_what_ends_a_thread_is_answered_at_once(function):
    result = ask(function, text="x")
    assert result.status is ToolStatus.ERROR
    assert result.duration_s < 25  # not the deadline of 30 s


def test_a_callable_that_answers_with_a_coroutine_is_awaited():
    async def shout(text: str) -> str:
        return text.upper()

    function = FunctionTool(function=partial(shout), spec=ToolSpec(name="shout"))
    assert ask(function, text="x").text == "X"


def test_slow_functions_run_beside_each_other():
    everybody = threading.Barrier(4, timeout=20)

    @tool
    def meet(text: str) -> str:
        """Wait for three others.

        Args:
            text: Ignored.
        """
        everybody.wait()
        return text

    runtime = ToolRuntime(tools=[meet])

    async def run():
        calls = (runtime.call(ToolCall(tool="meet", text="x"), make_context()) for _ in range(4))
        return await asyncio.gather(*calls)

    assert [result.text for result in asyncio.run(run())] == ["x"] * 4


@pytest.mark.slow
def test_functions_that_hang_hold_nobody_up_and_the_loop_ends_without_them():
    release = threading.Event()

    @tool(limits=ToolLimits(deadline_s=5.0, max_concurrent_calls=100))
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


def test_without_an_args_section_names_and_types_are_the_schema():
    @tool
    def multiply(a: float, b: float = 2.0) -> str:
        """Multiply two numbers.

        Returns:
            The product.
        """
        return str(a * b)

    assert multiply.spec.description == "Multiply two numbers."
    assert multiply.spec.parameters["properties"] == {"a": {"type": "number"}, "b": {"type": "number"}}
    assert multiply.spec.parameters["required"] == ["a"]


def undocumented(a: int):
    return a


def half_documented(a: int, b: int):
    """Do.

    Args:
        a: Number.
    """
    return a


def unhinted(a):
    """Do.

    Args:
        a: Number.
    """
    return a


def without_parameters():
    """Do."""


def yields(a: int):
    """Do.

    Args:
        a: Number.
    """
    yield a


def positional(a: int, /):
    """Do.

    Args:
        a: Number.
    """


def many(*a: int):
    """Do.

    Args:
        a: Numbers.
    """


def named(**a: int):
    """Do.

    Args:
        a: Numbers.
    """


def unknown_hint(a: "Nowhere"):  # noqa: F821
    """Do.

    Args:
        a: Number.
    """


def no_json(a: list[Path] | None):
    """Do.

    Args:
        a: Files.
    """


@pytest.mark.parametrize(
    "function",
    [
        undocumented,
        half_documented,
        unhinted,
        without_parameters,
        yields,
        positional,
        many,
        named,
        unknown_hint,
        no_json,
    ],
)
def test_a_function_that_cannot_be_described_is_refused(function):
    with pytest.raises(ConfigError, match=f"'{function.__name__}' must have a"):
        tool(function)


def test_what_has_no_name_is_refused():
    with pytest.raises(ConfigError, match=r"must be a function, but got functools\.partial"):
        tool(partial(undocumented, a=1))


@tool(isolation="thread")
def every_kind(
    word: str,
    kind: Literal["a", "b"] = "a",
    numbers: list[int] | None = None,
    maybe: Optional[str] = "x",  # noqa: UP045
    either: int | str = 0,
    level: Literal[1, 2] | None = None,
) -> str:
    """Say what came.

    Args:
        word: Any.
        kind: One of two.
        numbers: Some.
        maybe: Perhaps.
        either: Of two types.
        level: One of two, or none.
    """
    return repr((word, kind, numbers, maybe, either, level))


def test_hints_of_every_kind_are_checked_and_passed_on():
    assert ask(every_kind, word="t").text == "('t', 'a', None, 'x', 0, None)"
    full = {"word": "t", "kind": "b", "numbers": [1], "maybe": None, "either": "e", "level": 2}
    assert ask(every_kind, **full).text == "('t', 'b', [1], None, 'e', 2)"
    assert ask(every_kind, **full | {"numbers": None, "level": None}).status is ToolStatus.OK
    for wrong in ({"kind": "c"}, {"kind": None}, {"numbers": ["1"]}, {"maybe": 3}, {"either": []}, {"level": 3}):
        assert ask(every_kind, **full | wrong).status is ToolStatus.MALFORMED
    assert ask(every_kind, **full | {"surplus": 1}).status is not ToolStatus.OK


def test_hints_may_be_written_as_text_also_beside_a_context():
    # As `from __future__ import annotations` writes them; the context's is for a type checker only.
    @tool
    def choose(kind: "Literal['a', 'b']", context: "ToolContext") -> "str":  # noqa: F821
        """Choose.

        Args:
            kind: One of two.
        """
        return kind + context.question.question_id

    assert choose.spec.parameters["properties"]["kind"]["enum"] == ["a", "b"]
    assert ask(choose, text="a").text == "aq"


def test_a_function_that_answers_nothing_is_empty():
    @tool
    def quiet(text: str) -> None:
        """Do something.

        Args:
            text: Ignored.
        """

    assert (ask(quiet, text="x").status, ask(quiet, text="x").text) == (
        ToolStatus.EMPTY,
        "Tool(quiet) returned empty output.",
    )
