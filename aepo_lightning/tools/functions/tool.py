"""A Python function as a tool: its name, type hints and docstring are the contract."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, get_args, overload

from aepo_lightning.contracts.tool import AnyLimits, Tool, ToolContext, ToolLimits, ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.processes.child import is_fork_server
from aepo_lightning.tools.functions.routes import Isolation, Route, route_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """Calls a function: `async` ones in the event loop, plain ones in a warm process that is killed at the deadline.

    What a plain function changes outside of itself is changed in its process: a function that keeps something for
    others to see wants `isolation="thread"`, where no deadline can stop it. One whose code shows that it does, or that
    cannot be sent to a process, runs in a thread as well, and the log says why; `isolation="process"` refuses it.

    Attributes:
        function: What is called, with the arguments by name. A parameter named `context` gets the `ToolContext`.
        spec: What the policy reads, and the limits.
        isolation: `thread`, `process`, or `jail`, where the function sees neither files nor network and has to stand
            on its own. None is the event loop for an `async` function and a process for a plain one.

    Raises:
        ConfigError: If `isolation` is none of these.
    """

    function: Callable[..., Any]
    spec: ToolSpec = field()
    isolation: str | None = None
    _route: Route = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Choose how calls reach the function; nothing is started yet."""
        if self.isolation not in (None, *get_args(Isolation)):
            raise ConfigError(
                f"`isolation` of {self.spec.name!r} must be one of {', '.join(get_args(Isolation))}, but got "
                f"{self.isolation!r}. Leave it out for a process."
            )
        object.__setattr__(self, "_route", route_of(self.function, self.spec, self.isolation))

    @property
    def is_apart(self) -> bool:
        """Whether calls run where they cannot hold up the event loop, whatever they do."""
        return self._route.is_apart

    async def start(self) -> None:
        """Have a process, or the jail, wait for calls.

        Raises:
            ConfigError: If the function cannot be called in the way that was asked for.
        """
        await self._route.start()

    async def prepare(self) -> None:
        """See before each call, outside its deadline, that a process waits for it."""
        await self._route.start()

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function and return its answer as text; None is no text.

        Raises:
            Exception: Whatever the function raises. A `ToolError` reaches the model with its message alone.
        """
        return await self._route.call(arguments, context)


@overload
def tool(function: Callable[..., Any]) -> FunctionTool: ...


@overload
def tool(
    *,
    name: str | None = None,
    limits: AnyLimits | None = None,
    version: str = "1",
    isolation: Isolation | None = None,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    limits: AnyLimits | None = None,
    version: str = "1",
    isolation: str | None = None,
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
        isolation: Where calls run; see `FunctionTool`.

    Raises:
        ConfigError: If a parameter has no type hint, the function has no docstring, an `Args:` section leaves a
            parameter out, or the function cannot be called with that isolation.
    '''

    def wrap(function: Callable[..., Any]) -> FunctionTool:
        spec = _spec(function, name=name, limits=ToolLimits.of(limits), version=version)
        return FunctionTool(function=function, spec=spec, isolation=isolation)

    return wrap if function is None else wrap(function)


def _spec(function: Callable[..., Any], *, name: str | None, limits: ToolLimits, version: str) -> ToolSpec:
    if is_fork_server():  # it calls the function; what a schema is made with takes seconds to import
        return ToolSpec(name=name or function.__name__)
    schema: dict[str, Any] = import_module("aepo_lightning.tools.functions.schema").function_schema(function)
    parameters = schema["parameters"]
    takes_context = "context" in inspect.signature(function).parameters
    return ToolSpec(
        name=name or schema["name"],
        description=schema["description"],
        parameters=parameters,
        text_parameter=next(iter(parameters["properties"]), ""),
        # Nobody knows what of the context the answer depends on.
        is_question_bound=takes_context,
        is_history_bound=takes_context,
        limits=limits,
        version=version,
    )


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
    isolation: str | None = None,
) -> FunctionTool:
    """Return a function, decorated with `@tool` or not, as a tool with another name, limits, version or isolation.

    Args:
        function: Plain, `async` or decorated.
        name: Of the tool. None leaves it.
        limits: What a call may cost. None leaves them.
        version: Part of the cache key. None leaves it.
        isolation: Where calls run. None leaves it.

    Raises:
        ConfigError: If the function lacks type hints or a docstring, or cannot be called with that isolation.
    """
    made = function if isinstance(function, FunctionTool) else tool(function)
    spec = replace(made.spec, name=name or made.spec.name, version=version or made.spec.version)
    spec = spec if limits is None else replace(spec, limits=ToolLimits.of(limits))
    return replace(made, spec=spec, isolation=isolation or made.isolation)
