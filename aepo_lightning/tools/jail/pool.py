"""The pool: picks the best isolation that works here, and runs code behind it."""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.tools.jail.execution import Execution, Isolation, SandboxUnavailableError
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.jail import Jail
from aepo_lightning.tools.jail.remote import RemoteSandbox
from aepo_lightning.tools.jail.session import PythonSession
from aepo_lightning.tools.jail.settings import PoolSettings, check_seconds
from aepo_lightning.tools.jail.unsafe import UnsafeRunner

_ADVICE = (
    "Install bubblewrap and allow user namespaces (docker: --security-opt seccomp=..., or run the sandbox outside; "
    "Ubuntu 24.04: the AppArmor profile of the bubblewrap package), or set `remote_url` to a SandboxFusion server, or "
    "write isolation=unsafe to run code without any isolation."
)


@runtime_checkable
class _Backend(Protocol):
    @property
    def isolation(self) -> Isolation: ...

    @property
    def num_ready(self) -> int: ...

    async def run(self, job: Job) -> Execution: ...

    def close(self) -> None: ...


class PythonPool:
    """Runs model-written Python, many calls at a time, each in a fresh process behind the best wall there is.

    The pool opens itself at the first call; `start` does it earlier, and says at once if it cannot be done. It may be
    used from several event loops, one after another or at the same time in threads. It ends with `close`, with the
    interpreter, or when nobody refers to it any more.

    Args:
        settings: Limits and sizes; the defaults if left out.
        **changes: Fields of `PoolSettings` to set otherwise.

    Raises:
        ConfigError: If a setting cannot work.
    """

    def __init__(self, settings: PoolSettings | None = None, **changes: Any) -> None:
        self.settings = replace(settings or PoolSettings(), **changes)
        self._opening = _Opening(self.settings)
        self._finalizer = weakref.finalize(self, self._opening.close)

    @property
    def isolation(self) -> Isolation:
        """How calls are kept away from the host.

        Raises:
            ConfigError: If the pool is not open.
        """
        return self._opening.backend.isolation

    @property
    def num_ready(self) -> int:
        """Workers that are up, busy ones included; 0 before the pool is open."""
        return self._opening.backend.num_ready if self._opening.is_open else 0

    async def start(self) -> Isolation:
        """Open the pool and wait for its first worker.

        Returns:
            How calls are kept away from the host.

        Raises:
            SandboxUnavailableError: If there is no isolation to be had.
        """
        # Shielded: a caller that gives up must not take the pool away from the others.
        await asyncio.shield(asyncio.wrap_future(self._opening.begin()))
        return self.isolation

    async def run(self, code: str, *, timeout_s: float | None = None, stdin: str = "", seed: int = 0) -> Execution:
        """Run code once, in a process of its own.

        Args:
            code: Python code. If its last statement is an expression and not a print, its value is printed.
            timeout_s: Seconds it may run, from the moment it gets a worker. By default that of the settings.
            stdin: What the code reads as its standard input.
            seed: For the generators of `random`, numpy and sympy.

        Returns:
            What it wrote and how it ended. Code that fails is no exception.

        Raises:
            PoolBusyError: If too many calls wait already.
            PoolUnavailableError: If no worker is left, and none can be started at the moment.
            SandboxUnavailableError: If there is no isolation to be had.
            ToolError: If the code is too long.
            ConfigError: If `timeout_s` cannot be kept.
        """
        num_bytes = len(code.encode("utf-8", "replace")) + len(stdin.encode("utf-8", "replace"))
        if num_bytes > self.settings.max_input_bytes:
            raise ToolError(
                f"The code is too long: {num_bytes} bytes, but at most {self.settings.max_input_bytes} are allowed."
            )
        timeout_s = self.settings.timeout_s if timeout_s is None else timeout_s
        return await self._execute(Job(code=code, timeout_s=timeout_s, stdin=stdin, seed=seed))

    async def session(self) -> PythonSession:
        """Begin a chain of calls that build on one another. A session needs no closing.

        Raises:
            SandboxUnavailableError: If there is no isolation to be had, or code runs elsewhere than in the local jail.
        """
        if (await self.start()).level != "jail":
            raise SandboxUnavailableError(
                f"Sessions need the local jail, but got {self.isolation.description}. {_ADVICE}"
            )
        return PythonSession(self._execute, timeout_s=self.settings.timeout_s, max_bytes=self.settings.max_input_bytes)

    async def _execute(self, job: Job) -> Execution:
        check_seconds("timeout_s", job.timeout_s)
        if not self._opening.is_open:
            await self.start()
        return await self._opening.backend.run(job)

    def close(self) -> None:
        """End all workers and wait until they are gone. May be called twice."""
        self._finalizer()


class _Opening:
    """Opens a back end once, in a thread, whoever asks first."""

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._backend: _Backend | None = None
        self._future: Future[None] | None = None
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        return self._backend is not None and self._owner == os.getpid()

    @property
    def backend(self) -> _Backend:
        if self._backend is None:
            raise ConfigError("The Python pool must be open, but it is not. Call `start` or run code first.")
        return self._backend

    def begin(self) -> "Future[None]":
        with self._lock:
            if self._owner != os.getpid():
                raise ConfigError("A Python pool must be used in the process that made it. Make one in each process.")
            if self._is_closed:
                raise ConfigError("The Python pool must be open, but it was closed. Make a new one.")
            has_failed = self._future is not None and self._future.done() and self._backend is None
            if self._future is None or has_failed:
                thread = ThreadPoolExecutor(1, thread_name_prefix="python-pool-opening")
                self._future = thread.submit(self._open)
                thread.shutdown(wait=False)
            return self._future

    def close(self) -> None:
        if self._owner != os.getpid():  # a fork of the owner must not end its workers
            return
        with self._lock:
            self._is_closed = True
            future = self._future
        if future is not None:
            future.exception()  # waits
        if self._backend is not None:
            self._backend.close()

    def _open(self) -> None:
        reasons = []
        for open_backend in _LADDER[self._settings.isolation]:
            try:
                self._backend = open_backend(self._settings)
            except SandboxUnavailableError as error:
                reasons.append(str(error))
            else:
                return
        raise SandboxUnavailableError(f"No isolation for model-written Python: {'; '.join(reasons)}. {_ADVICE}")


# What to try, best first. Running code without isolation is never a fall-back.
_LADDER: dict[str, tuple[Callable[[PoolSettings], _Backend], ...]] = {
    "auto": (Jail, RemoteSandbox),
    "bubblewrap": (Jail,),
    "remote": (RemoteSandbox,),
    "unsafe": (UnsafeRunner,),
}
