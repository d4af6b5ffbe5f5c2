"""One function, called in worker processes, which are killed when a call is cancelled."""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aepo_lightning.errors import boundary
from aepo_lightning.processes.child import ANSWER, TEXT, VALUE
from aepo_lightning.processes.errors import BrokenCallError, CannotSendError
from aepo_lightning.processes.fork_server import server_of
from aepo_lightning.processes.program import Program, find_by_name, send_by_value
from aepo_lightning.processes.told_error import told_error


class ProcessCalls:
    """Calls one function in processes, in the main thread there. Cancelling a call kills its process.

    Args:
        function: Found by its module and name on the other side, or sent with what it refers to. What it returns is
            awaited there if need be.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._place: tuple[Program, str] | None = None

    @property
    def server_pid(self) -> int | None:
        """Process number of the fork server, or None if it does not run."""
        return None if self._place is None else server_of(self._place[0]).pid

    def check(self) -> None:
        """Look whether the function can be sent, without a process.

        Raises:
            CannotSendError: If it cannot, with the reason.
        """
        if find_by_name(self._function) is None:
            send_by_value(self._function)

    async def prepare(self) -> None:
        """Return once a process waits for calls. It costs little if that has been done.

        Raises:
            CannotSendError: If the function cannot be called in another process, with the reason.
            NoProcessError: If no process can be started.
        """
        await self._prepared()

    async def _prepared(self) -> tuple[Program, str]:
        """Return where the function is, with a process there that waits for calls."""
        if self._place is not None:
            await server_of(self._place[0]).prepare()
            return self._place
        by_name = find_by_name(self._function)
        if by_name is not None:
            try:
                await server_of(by_name[0]).prepare()
            except CannotSendError:
                server_of(by_name[0]).close()
            else:
                self._place = by_name
                return by_name
        by_value = send_by_value(self._function)
        await server_of(by_value[0]).prepare()
        self._place = by_value
        return by_value

    async def text(self, named: Mapping[str, Any], seed: int = 0) -> str:
        """Call the function and return its answer as text; None is no text.

        Args:
            named: Arguments by name.
            seed: Of the random generators there, in 32 bits.

        Raises:
            Exception: As the function raised it, with its names and message, and the line as `raised_at`.
            ProcessError: If no process answered.
        """
        return (await self._answer(TEXT, (), named, seed)).decode("utf-8", "surrogatepass")

    async def value(self, *arguments: Any, seed: int = 0) -> Any:
        """Call the function and return a copy of its answer.

        Args:
            *arguments: By position.
            seed: Of the random generators there, in 32 bits.

        Raises:
            Exception: As the function raised it, with its names and message, and the line as `raised_at`.
            ProcessError: If no process answered.
        """
        return pickle.loads(await self._answer(VALUE, arguments, {}, seed))

    async def _answer(self, kind: bytes, arguments: Sequence[Any], named: Mapping[str, Any], seed: int) -> bytes:
        program, name = await self._prepared()
        job = {"function": name, "arguments": arguments, "named": dict(named), "seed": seed, "kind": kind}
        reply = await server_of(program).call(_pickled(job))
        if reply[:1] == ANSWER:
            return reply[1:]
        raise told_error(json.loads(reply[1:]))


def _pickled(job: Mapping[str, Any]) -> bytes:
    failures: list[Exception] = []
    with boundary(failures.append):
        return pickle.dumps(job)
    raise BrokenCallError(
        f"what it is called with cannot be sent to another process ({type(failures[0]).__name__}: {failures[0]}). A "
        "function with isolation=thread gets it as it is."
    )
