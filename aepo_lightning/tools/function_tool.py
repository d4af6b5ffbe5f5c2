"""A Python function as a tool: its name, type hints and docstring are the contract."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from aepo_lightning.errors import ConfigError, boundary
from aepo_lightning.tool_spec import ToolLimits, ToolSpec
from aepo_lightning.types import ToolContext


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """Calls a function: a plain one in a thread of its own, so that it holds nobody up, `async` ones in the loop.

    A thread cannot be stopped: at its deadline a call of a plain function is given up, and the function runs on until
    it returns. Where that matters, write an `async` function.

    Attributes:
        function: What is called, with the arguments by name. A parameter named `context` gets the `ToolContext`.
        spec: What the policy reads, and the limits.
    """

    function: Callable[..., Any]
    spec: ToolSpec = field()

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function and return its answer as text.

        Raises:
            Exception: Whatever the function raises. A `ToolError` reaches the model with its message alone.
        """
        own = {"context": context} if "context" in inspect.signature(self.function).parameters else {}
        if inspect.iscoroutinefunction(self.function):
            answer = await self.function(**arguments, **own)
        else:
            answer = await _in_thread(partial(self.function, **arguments, **own))
        return answer if isinstance(answer, str) else str(answer)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own: a pool would fill up with those that hang and wait for them."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(failure: list[Exception], value: Any) -> None:
        if answer.cancelled():
            return
        if failure:
            answer.set_exception(failure[0])
        else:
            answer.set_result(value)

    def work() -> None:
        failure: list[Exception] = []
        value: Any = None
        with boundary(failure.append):
            value = function()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failure, value)

    threading.Thread(target=work, name="aepo-tool", daemon=True).start()
    return await answer


@overload
def tool(function: Callable[..., Any]) -> FunctionTool: ...


@overload
def tool(
    *, name: str | None = None, limits: ToolLimits | None = None, version: str = "1"
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    limits: ToolLimits | None = None,
    version: str = "1",
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    '''Turn a function with type hints and a docstring into a tool.

    .. code-block:: python

        @tool
        def multiply(a: float, b: float) -> str:
            """Multiply two numbers.

            Args:
                a: The first.
                b: The second.
            """
            return str(a * b)

    In the tag format, the text between the tags is the function's first parameter, which must then be a string.

    Args:
        function: What to call. Left out where the decorator has arguments.
        name: Of the tool. Default: the function's.
        limits: What a call may cost.
        version: Part of the cache key.

    Raises:
        ConfigError: If a parameter has no type hint or no description, or the function has no docstring.
    '''

    def wrap(function: Callable[..., Any]) -> FunctionTool:
        schema = _schema(function)
        parameters = schema["parameters"]
        return FunctionTool(
            function=function,
            spec=ToolSpec(
                name=name or schema["name"],
                description=schema["description"],
                parameters=parameters,
                text_parameter=next(iter(parameters["properties"]), ""),
                limits=limits or ToolLimits(),
                version=version,
            ),
        )

    return wrap if function is None else wrap(function)


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    name = getattr(function, "__name__", repr(function))
    visible = function
    if "context" in inspect.signature(function).parameters:
        visible = _without_context(function)
    try:
        schema: dict[str, Any] = get_json_schema(visible)["function"]
    except (DocstringParsingException, TypeHintParsingException, ValueError) as error:
        raise ConfigError(
            f"{name!r} must have a docstring with an `Args:` section and a type hint for each parameter to be a tool, "
            f"but: {error}"
        ) from None
    if not schema["parameters"].get("properties"):
        raise ConfigError(f"{name!r} must have a parameter to be a tool, but has none.")
    return schema


def _without_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return something with the function's name, docstring and parameters, except `context`."""

    def visible() -> None: ...

    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "context"]
    visible.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    visible.__name__, visible.__doc__ = function.__name__, function.__doc__
    visible.__annotations__ = {k: v for k, v in function.__annotations__.items() if k != "context"}
    return visible
