"""Functions called in worker processes, which are killed at the deadline."""

from collections.abc import Callable, Mapping
from typing import Any

from aepo_lightning.contracts.tool import ToolContext
from aepo_lightning.errors import boundary
from aepo_lightning.processes.calls import call_apart
from aepo_lightning.processes.fork_server import server_of
from aepo_lightning.processes.program import CannotSendError, Program, find_by_name, send_by_value


class ProcessCalls:
    """Calls one function in processes.

    Args:
        function: Found by its module and name on the other side, or sent with what it refers to.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._place: tuple[Program, str] | None = None

    @property
    def server_pid(self) -> int | None:
        """Process number of the fork server, or None if it does not run."""
        return None if self._place is None else server_of(self._place[0]).pid

    async def prepare(self) -> None:
        """Return once a process waits for calls.

        Raises:
            CannotSendError: If the function cannot be called in another process, with the reason.
            ToolUnavailableError: If no process can be started.
        """
        if self._place is not None:
            await server_of(self._place[0]).prepare()
            return
        by_name = find_by_name(self._function)
        if by_name is not None:
            failures: list[Exception] = []
            with boundary(failures.append):
                await server_of(by_name[0]).prepare()
            if not failures:
                self._place = by_name
                return
            if not isinstance(failures[0], CannotSendError):
                raise failures[0]
            server_of(by_name[0]).close()
        by_value = send_by_value(self._function)
        await server_of(by_value[0]).prepare()
        self._place = by_value

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext, takes_context: bool) -> str:
        """Call the function, which was prepared before, in a process seeded with the call's place in the rollout.

        Args:
            arguments: By name.
            context: The chain that calls.
            takes_context: Whether the function gets it.

        Raises:
            Exception: As the function raised it, with its names and message.
            ToolError: If its process ended.
        """
        assert self._place is not None, "`prepare` was called"
        program, name = self._place
        return await call_apart(program, name, arguments, context if takes_context else None, context.seed)
