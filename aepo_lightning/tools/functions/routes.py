"""How calls reach a function: in the event loop, in a thread, in a process, or in the jail."""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from aepo_lightning.contracts.tool import ToolContext, ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.processes.calls import ProcessCalls
from aepo_lightning.processes.child import to_text
from aepo_lightning.processes.errors import CannotSendError
from aepo_lightning.tools.functions.jailed import JailedCalls
from aepo_lightning.tools.functions.outer_state import outer_state
from aepo_lightning.tools.functions.threads import text_from_thread
from aepo_lightning.tools.process_errors import process_errors

logger = logging.getLogger(__name__)

Isolation: TypeAlias = Literal["thread", "process", "jail"]


@runtime_checkable
class Route(Protocol):
    """One way to call a function."""

    @property
    def is_apart(self) -> bool:
        """Whether a call cannot hold up the event loop."""
        ...

    async def start(self) -> None:
        """Make ready; it costs little if that has been done."""
        ...

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function with checked arguments, and return its answer as text."""
        ...


def route_of(function: Callable[..., Any], spec: ToolSpec, isolation: str | None) -> Route:
    """Return how to call a function.

    Args:
        function: What is called.
        spec: Of the tool.
        isolation: What was asked for.

    Raises:
        ConfigError: If the function cannot be called in that way.
    """
    if isolation == "jail":
        return JailedCalls(function, spec)
    takes_context = "context" in inspect.signature(function).parameters
    if isolation == "thread" or (isolation is None and inspect.iscoroutinefunction(function)):
        return InsideCalls(function, takes_context)
    return OutsideCalls(function, spec.name, takes_context, is_asked_for=isolation == "process")


class InsideCalls:
    """Calls a function in this process: an `async` one in the event loop, a plain one in a thread.

    Args:
        function: What is called.
        takes_context: Whether it gets the context.
    """

    is_apart = False

    def __init__(self, function: Callable[..., Any], takes_context: bool) -> None:
        self._function, self._takes_context = function, takes_context

    async def start(self) -> None:
        """Nothing has to be ready."""

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function."""
        own = {"context": context} if self._takes_context else {}
        if inspect.iscoroutinefunction(self._function):
            return to_text(await self._function(**arguments, **own))
        return await text_from_thread(self._function, {**arguments, **own})


class OutsideCalls:
    """Calls a function in a process, or in a thread if that cannot be and was not asked for by name.

    Args:
        function: What is called.
        name: Of the tool, for messages.
        takes_context: Whether the function gets the context.
        is_asked_for: Refuse instead of taking a thread.
    """

    def __init__(self, function: Callable[..., Any], name: str, takes_context: bool, *, is_asked_for: bool) -> None:
        self._processes = ProcessCalls(function)
        self._inside = InsideCalls(function, takes_context)
        self._name, self._takes_context, self._is_asked_for = name, takes_context, is_asked_for
        self._function = function
        self._is_in_thread = self._has_looked = False

    @property
    def is_apart(self) -> bool:
        """Whether a process was to be had."""
        return not self._is_in_thread

    async def start(self) -> None:
        """Have a process wait for calls.

        Raises:
            ConfigError: If a process was asked for and the function cannot be called there.
            ToolUnavailableError: If no process can be started.
        """
        self._look()
        if self._is_in_thread:
            return
        try:
            with process_errors():
                await self._processes.prepare()
        except CannotSendError as error:
            if self._is_asked_for:
                raise ConfigError(
                    f"Tool({self._name}) must be a function that another process can load for isolation=process, but "
                    f"got one that it cannot ({error}). Define it in a module, or set isolation=thread."
                ) from None
            self._take_thread(f"another process cannot load it ({error})")

    def _look(self) -> None:
        """See whether the function's code shows that others wait for what it changes."""
        if self._has_looked or self._is_asked_for:
            return
        self._has_looked = True
        changed = outer_state(self._function)
        if changed is not None:
            self._take_thread(f"it changes {changed!r}, which other processes would not see")

    def _take_thread(self, reason: str) -> None:
        self._is_in_thread = True
        logger.warning(
            "Tool(%s) runs in a thread, where no deadline can stop it, because %s. Set isolation to `thread` if that "
            "is meant, or to `process`.",
            self._name,
            reason,
        )

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function."""
        await self.start()
        if self._is_in_thread:
            return await self._inside.call(arguments, context)
        own = {"context": context} if self._takes_context else {}
        with process_errors():
            return await self._processes.text({**arguments, **own}, context.seed)
