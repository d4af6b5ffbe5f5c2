"""A Python function as a tool: its name, type hints and docstring are the contract."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints, overload

from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from aepo_lightning.contracts.tool import AnyLimits, Tool, ToolContext, ToolLimits, ToolSpec
from aepo_lightning.errors import ConfigError, boundary

_JSON_TYPES = (str, int, float, bool, list, dict, tuple, NoneType, UnionType)
_UNDESCRIBED = "(undescribed)"


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
        """Call the function and return its answer as text; None is no text.

        Raises:
            Exception: Whatever the function raises. A `ToolError` reaches the model with its message alone.
        """
        own = {"context": context} if "context" in inspect.signature(self.function).parameters else {}
        if inspect.iscoroutinefunction(self.function):
            answer = await self.function(**arguments, **own)
        else:
            answer = await _in_thread(partial(self.function, **arguments, **own))
            if inspect.isawaitable(answer):  # of a callable that does not look like an `async` function
                answer = await answer
        if answer is None:
            return ""
        return answer if isinstance(answer, str) else str(answer)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own: a pool would fill up with those that hang and wait for them."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(failure: list[Exception], value: Any) -> None:
        if answer.cancelled():
            return
        if failure and isinstance(failure[0], StopIteration):  # no future takes it
            answer.set_exception(RuntimeError("the function raised StopIteration."))
        elif failure:
            answer.set_exception(failure[0])
        else:
            answer.set_result(value)

    def work() -> None:
        failure: list[Exception] = []
        value: Any = None
        with boundary(failure.append):
            try:
                value = function()
            except SystemExit as error:  # ends a thread without a word
                raise RuntimeError("the function tried to end the process.") from error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failure, value)

    threading.Thread(target=work, name="aepo-tool", daemon=True).start()
    return await answer


@overload
def tool(function: Callable[..., Any]) -> FunctionTool: ...


@overload
def tool(
    *, name: str | None = None, limits: AnyLimits | None = None, version: str = "1"
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    limits: AnyLimits | None = None,
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

    Without an `Args:` section the policy reads the parameters' names and types only. In the tag format a single text
    parameter is the text between the tags; anything else is written there as JSON.

    Args:
        function: What to call. Left out where the decorator has arguments.
        name: Of the tool. Default: the function's.
        limits: What a call may cost.
        version: Part of the cache key.

    Raises:
        ConfigError: If a parameter has no type hint, the function has no docstring, or an `Args:` section leaves a
            parameter out.
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
                limits=ToolLimits.of(limits),
                version=version,
            ),
        )

    return wrap if function is None else wrap(function)


def as_tool(candidate: Tool | Callable[..., Any]) -> Tool:
    """Return a tool as it is, and a plain function as the tool that `@tool` makes of it.

    Raises:
        ConfigError: If it is neither, or the function lacks type hints or a docstring.
    """
    if isinstance(candidate, type) or not callable(candidate):
        raise ConfigError(f"A tool must be a function or a `Tool`, but got {candidate!r}. Pass an instance.")
    return candidate if isinstance(candidate, Tool) else tool(candidate)


def function_tool(
    function: FunctionTool | Callable[..., Any],
    *,
    name: str | None = None,
    limits: AnyLimits | None = None,
    version: str | None = None,
) -> FunctionTool:
    """Return a function, decorated with `@tool` or not, as a tool with another name, limits or version.

    Args:
        function: Plain, `async` or decorated.
        name: Of the tool. None leaves it.
        limits: What a call may cost. None leaves them.
        version: Part of the cache key. None leaves it.

    Raises:
        ConfigError: If the function lacks type hints or a docstring.
    """
    made = function if isinstance(function, FunctionTool) else tool(function)
    spec = replace(made.spec, name=name or made.spec.name, version=version or made.spec.version)
    return replace(made, spec=spec if limits is None else replace(spec, limits=ToolLimits.of(limits)))


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    name = getattr(function, "__name__", None)
    if name is None:
        raise ConfigError(f"A tool must be a function, but got {function!r}. Write a function that calls it.")
    try:
        visible = _visible(function)
        schema: dict[str, Any] = get_json_schema(visible)["function"]
    except (DocstringParsingException, TypeHintParsingException, ValueError, TypeError, NameError) as error:
        raise ConfigError(
            f"{name!r} must have a docstring and a type hint for each parameter to be a tool, and an `Args:` section, "
            f"if there is one, must have a line for each, but: {error}"
        ) from None
    if not schema["parameters"].get("properties"):
        raise ConfigError(f"{name!r} must have a parameter to be a tool, but has none.")
    for each in schema["parameters"]["properties"].values():
        if each["description"] == _UNDESCRIBED:
            del each["description"]
    schema["parameters"] = _with_null(schema["parameters"])
    return schema


def _visible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return something with the function's name, docstring and parameters, except `context`.

    Raises:
        TypeError: If the function yields, or has a parameter that JSON has no value for or that has no name.
    """

    def visible() -> None: ...

    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("it yields. Return the whole answer.")
    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "context"]
    for parameter in kept:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{parameter} is {parameter.kind.description}, and arguments come by name.")
    # A hint of `context` may be an import for type checkers only, so it is not looked at.
    plain = inspect.unwrap(function)
    hints = {key: hint for key, hint in function.__annotations__.items() if key not in ("context", "return")}
    holder = type("Hints", (), {"__annotations__": hints})
    visible.__annotations__ = get_type_hints(holder, getattr(plain, "__globals__", {}))
    for key, hint in visible.__annotations__.items():
        _check_hint(key, hint)
    visible.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each.replace(annotation=hints.get(each.name, each.empty)) for each in kept]
    )
    visible.__name__, visible.__doc__ = function.__name__, _with_args_section(function.__doc__, [*hints])
    return visible


def _with_args_section(docstring: str | None, names: Sequence[str]) -> str | None:
    """Return a docstring in which each parameter has a line, as the parser wants it, unless it has such a section."""
    if not docstring or "Args:" in docstring:
        return docstring
    return "\n".join([inspect.cleandoc(docstring), "", "Args:", *(f"    {name}: {_UNDESCRIBED}" for name in names)])


def _check_hint(name: str, hint: Any) -> None:
    if get_origin(hint) is Literal:
        return
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and kind not in _JSON_TYPES:
        raise TypeError(
            f"`{name}` is {kind.__name__}, which JSON has no value for. Take text or a dict, and convert it."
        )
    for part in get_args(hint):
        _check_hint(name, part)


def _with_null(schema: Any) -> Any:
    """Say in JSON schema what `nullable` says in another dialect: `Optional` parameters take null."""
    if isinstance(schema, list):
        return [_with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _with_null(value) for key, value in schema.items() if key != "nullable" or value is not True}
    if len(plain) < len(schema):
        kinds = plain.get("type", [])
        if "type" in plain:
            plain["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
        if "enum" in plain:
            plain["enum"] = [*plain["enum"], None]
    return plain
