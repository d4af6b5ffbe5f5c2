"""State that lasts from call to call of one chain, and that a branch of the chain takes along: by replay.

A session keeps the code of its calls, not a process. Each call runs in a fresh process like any other, in which the
earlier code is run first, unseen. So no process need ever be allowed inside the jail, an idle or forgotten session
costs nothing, a fork is a copy of a list, and the loss of a worker loses no state. The price: earlier code is run again
within the time-out of the new call, and code that does not do the same again (clocks, numbers from the operating
system) leaves other state than it did.
"""

import asyncio
from collections.abc import Awaitable, Callable

from aepo_lightning.errors import ToolError
from aepo_lightning.tools.jail.execution import Execution, ExitKind
from aepo_lightning.tools.jail.inside.job import Job

_KEPT = (ExitKind.OK, ExitKind.ERROR)  # code that ended by itself; what was stopped would be stopped again


class PythonSession:
    """The calls of one chain, each of which finds what the earlier ones left: names, files, imported packages.

    Args:
        execute: Runs one job.
        timeout_s: Seconds a call may run, replay included.
        max_bytes: Most code that a session may hold, in UTF-8.
    """

    def __init__(self, execute: Callable[[Job], Awaitable[Execution]], *, timeout_s: float, max_bytes: int) -> None:
        self._execute, self._timeout_s, self._max_bytes = execute, timeout_s, max_bytes
        self._history: tuple[tuple[str, int], ...] = ()
        self._turn = asyncio.Lock()

    @property
    def history(self) -> tuple[tuple[str, int], ...]:
        """Code and seed of the calls whose state is kept, oldest first."""
        return self._history

    async def run(self, code: str, *, timeout_s: float | None = None, seed: int = 0) -> Execution:
        """Run code on top of what earlier calls left. Calls of one session wait for one another.

        Args:
            code: Python code.
            timeout_s: Seconds it may run, replay included. By default that of the pool.
            seed: For the generators of `random`, numpy and sympy.

        Returns:
            What this call wrote and how it ended. If it was stopped at a limit, the state stays what it was before.

        Raises:
            ToolError: If the code of the session has become too long.
        """
        async with self._turn:
            num_bytes = sum(len(piece.encode("utf-8", "replace")) for piece, _ in (*self._history, (code, seed)))
            if num_bytes > self._max_bytes:
                raise ToolError(
                    f"The code of this session is too long: {num_bytes} bytes, but at most {self._max_bytes} are kept."
                )
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            execution = await self._execute(Job(code=code, timeout_s=timeout_s, seed=seed, history=self._history))
            if execution.exit in _KEPT:
                self._history = (*self._history, (code, seed))
            return execution

    async def fork(self) -> "PythonSession":
        """Return a session with the same state, once no call runs. The two go separate ways."""
        async with self._turn:
            copy = PythonSession(self._execute, timeout_s=self._timeout_s, max_bytes=self._max_bytes)
            copy._history = self._history
            return copy
