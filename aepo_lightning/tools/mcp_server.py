"""Connections to one MCP server: a few sessions that stay open, in a thread of their own.

The thread has its own event loop, so sessions outlive the loops of rollouts, and a server that sends megabytes keeps no
chain waiting. `mcp` is imported here and nowhere else.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from aepo_lightning.errors import ConfigError, ToolError, ToolUnavailableError, boundary

logger = logging.getLogger(__name__)

T = TypeVar("T")
_CONNECTION_CLOSED, _REQUEST_TIMEOUT = -32000, -32001
_CLOSE_S = 10.0


@dataclass(eq=False, slots=True)
class _Session:
    """One open session. It is entered and left by one task, as the client asks for."""

    client: Any
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: asyncio.Task[None] | None = None
    num_calls: int = 0
    """Calls that run on it now."""


class MCPServer:
    """Sessions with one server, over stdio or streamable HTTP.

    Sessions are opened when they are needed. One whose call fails, is cut off or is cancelled is closed, and the next
    call opens another: nobody knows what it would still receive.
    """

    def __init__(
        self,
        command: Sequence[str] = (),
        url: str = "",
        *,
        env: Mapping[str, str] | None = None,
        num_sessions: int = 2,
        connect_timeout_s: float = 30.0,
    ) -> None:
        """Keep the settings; nothing is started yet.

        Args:
            command: Program and arguments of a server that talks over stdin and stdout. It comes from the
                configuration, never from data.
            url: Of a server that talks streamable HTTP. One of `command` and `url` must be given.
            env: Variables for the program. Of this process's own it gets the harmless ones only (PATH, HOME, ...).
            num_sessions: Most sessions that are shared by all chains.
            connect_timeout_s: How long opening a session may take.

        Raises:
            ConfigError: If the settings do not name one server, or the `mcp` package is missing.
        """
        if bool(command) == bool(url):
            raise ConfigError(f"One of `command` and `url` must be given, but got {list(command)} and {url!r}.")
        if num_sessions < 1 or not connect_timeout_s > 0:
            raise ConfigError(
                "`num_sessions` must be at least 1 and `connect_timeout_s` positive, but got "
                f"{num_sessions} and {connect_timeout_s}."
            )
        try:
            self._mcp: Any = import_module("mcp")
        except ImportError as error:
            raise ConfigError(f"MCP tools need the `mcp` extra: pip install 'aepo-lightning[mcp]' ({error}).") from None
        self.name = url or " ".join(command)
        self._command, self._url, self._env = list(command), url, dict(env or {})
        self._num_sessions = num_sessions
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared: list[_Session] = []
        self._own: dict[str, _Session] = {}
        self._opening: asyncio.Lock | None = None

    # Called from any thread ----------------------------------------------------------------------------------------

    def list_tools(self) -> list[Any]:
        """Return the server's tools, as the `mcp` package describes them.

        Raises:
            ToolUnavailableError: If the server cannot be reached.
        """
        return self._submit(self._list_tools()).result()

    async def call(self, name: str, arguments: Mapping[str, Any], session: str = "") -> Any:
        """Call a tool and return the result, as the `mcp` package describes it.

        Args:
            name: The server's own name of the tool.
            arguments: Checked by the server.
            session: Name of a session of one's own; empty for any of the shared ones.

        Raises:
            ToolUnavailableError: If the server died, cannot be reached or speaks another protocol.
            ToolError: If the server refuses the call.
        """
        return await asyncio.wrap_future(self._submit(self._call(name, dict(arguments), session)))

    async def end_session(self, session: str) -> None:
        """Close a session of one's own."""
        await asyncio.wrap_future(self._submit(self._end_own(session)))

    def close(self) -> None:
        """Close all sessions and end the thread. Calling it twice is allowed; a later call starts again."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end_all(), loop).result(_CLOSE_S)
        loop.call_soon_threadsafe(loop.stop)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._run, args=(self._loop,), name="aepo-mcp", daemon=True).start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()
        loop.close()

    # Inside the thread ---------------------------------------------------------------------------------------------

    async def _list_tools(self) -> list[Any]:
        session = await self._pick("")
        with self._used(session):
            return list((await session.client.list_tools()).tools)

    async def _call(self, name: str, arguments: dict[str, Any], own: str) -> Any:
        session = await self._pick(own)
        with self._used(session):
            return await session.client.call_tool(name, arguments)

    def _used(self, session: _Session) -> "_Use":
        return _Use(self, session)

    async def _pick(self, own: str) -> _Session:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if own:
                if own not in self._own:
                    self._own[own] = await self._open()
                return self._own[own]
            idle = [session for session in self._shared if not session.num_calls]
            if not idle and len(self._shared) < self._num_sessions:
                self._shared.append(await self._open())
                return self._shared[-1]
            return min(self._shared, key=lambda session: session.num_calls)

    async def _open(self) -> _Session:
        opened: asyncio.Future[_Session] = asyncio.get_running_loop().create_future()
        keeper = asyncio.ensure_future(self._keep(opened))
        failure: list[Exception] = []
        with boundary(failure.append):
            async with asyncio.timeout(self._connect_timeout_s):
                session = await asyncio.shield(opened)
                session.keeper = keeper
                return session
        keeper.cancel()
        reason = _reason(failure[0])
        logger.warning("The MCP server %s could not be reached: %s", self.name, reason)
        raise ToolUnavailableError(f"the server could not be reached ({reason}).")

    async def _keep(self, opened: asyncio.Future[_Session]) -> None:
        """Enter a client, hand it over, and leave it when it is no longer wanted."""

        def report(error: Exception) -> None:
            if not opened.done():
                opened.set_exception(error)
            else:
                logger.info("A session with %s ended with %s", self.name, _reason(error))

        with boundary(report):
            async with self._mcp.Client(self._target()) as client:
                session = _Session(client)
                opened.set_result(session)
                await session.ending.wait()

    def _target(self) -> Any:
        if self._url:
            return self._url
        return self._mcp.StdioServerParameters(command=self._command[0], args=self._command[1:], env=self._env)

    def drop(self, session: _Session) -> None:
        """Close a session once; those who use it see it closed."""
        if session in self._shared:
            self._shared.remove(session)
        for name in [name for name, own in self._own.items() if own is session]:
            del self._own[name]
        session.ending.set()

    async def _end_own(self, name: str) -> None:
        session = self._own.pop(name, None)
        if session is not None:
            session.ending.set()

    async def _end_all(self) -> None:
        sessions = [*self._shared, *self._own.values()]
        for session in sessions:
            self.drop(session)
        await asyncio.gather(*(session.keeper for session in sessions if session.keeper), return_exceptions=True)


class _Use:
    """One call on a session: counted, and the session dropped if the call did not come back."""

    def __init__(self, server: MCPServer, session: _Session) -> None:
        self._server, self._session = server, session

    def __enter__(self) -> None:
        self._session.num_calls += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._session.num_calls -= 1
        if error is None:
            return
        code = getattr(getattr(error, "error", None), "code", None)
        if code is not None and code not in (_CONNECTION_CLOSED, _REQUEST_TIMEOUT):
            raise ToolError(f"the server refused the call: {str(error)[:300]}") from error
        self._server.drop(self._session)
        if isinstance(error, Exception):
            raise ToolUnavailableError(f"the server failed ({_reason(error)}).") from error


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
