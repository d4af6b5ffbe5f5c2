"""Connections to one MCP server: a few sessions that stay open, in a thread of their own.

The thread has its own event loop, so sessions outlive the loops of rollouts, and a server that sends megabytes keeps no
chain waiting. `mcp` is imported here and nowhere else.
"""

import asyncio
import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from aepo_lightning.errors import ConfigError, ToolUnavailableError
from aepo_lightning.event_loop import LoopThread
from aepo_lightning.tools.mcp.sessions import Sessions, SessionSettings

T = TypeVar("T")
_CLOSE_S = 10.0
_MIN_SECRET_CHARS = 4


class MCPServer:
    """Sessions with one server, over stdio or streamable HTTP.

    Sessions are opened when they are needed. One whose call fails, is cut off or is cancelled takes no further calls,
    and the next call opens another: nobody knows what it would still receive. Messages name a server without its
    arguments, the rest of its address and its variables: these may be secrets.
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
            raise ConfigError(f"One of `command` and `url` must be given, but got {'both' if url else 'neither'}.")
        if num_sessions < 1 or not connect_timeout_s > 0:
            raise ConfigError(
                "`num_sessions` must be at least 1 and `connect_timeout_s` positive, but got "
                f"{num_sessions} and {connect_timeout_s}."
            )
        try:
            self._mcp: Any = import_module("mcp")
        except ImportError as error:
            raise ConfigError(f"MCP tools need the `mcp` extra: pip install 'aepo-lightning[mcp]' ({error}).") from None
        self._command, self._url, self._env = list(command), url, dict(env or {})
        self.name = _name(self._command, url)
        settings = SessionSettings(
            connect=partial(_client, self._mcp, self._command, url, self._env),
            name=self.name,
            hide=partial(_hide, _secrets(self._command, url, self._env)),
            num_shared=num_sessions,
            connect_timeout_s=connect_timeout_s,
        )
        self._sessions = _OpenSessions(settings)
        self._finalizer = weakref.finalize(self, self._sessions.close)

    @property
    def identity(self) -> str:
        """The name, and what tells servers of the same name apart."""
        digest = hashlib.sha256(json.dumps([self._command, self._url, sorted(self._env.items())]).encode())
        return f"{self.name} {digest.hexdigest()[:8]}"

    def list_tools(self) -> list[Any]:
        """Return the server's tools, as the `mcp` package describes them.

        Raises:
            ToolUnavailableError: If the server cannot be reached, or does not answer within `connect_timeout_s`.
        """
        return self._sessions.run(lambda sessions: sessions.list_tools())

    async def call(self, name: str, arguments: Mapping[str, Any], session: str = "") -> Any:
        """Call a tool and return the result, as the `mcp` package describes it.

        Args:
            name: The server's own name of the tool.
            arguments: Checked by the server.
            session: Name of a session of one's own; empty for any of the shared ones.

        Raises:
            ToolUnavailableError: If the server died, cannot be reached or speaks another protocol, or the session was
                lost in an earlier call.
            ToolError: If the server refuses the call.
        """
        return await self._sessions.call(lambda sessions: sessions.call(name, dict(arguments), session))

    async def begin_session(self, session: str) -> None:
        """Say that one more tool uses a session of one's own. It is opened at the first call."""
        await self._sessions.call(lambda sessions: sessions.begin(session))

    async def end_session(self, session: str) -> None:
        """Say that one tool less uses a session of one's own. It is closed after the last."""
        await self._sessions.call(lambda sessions: sessions.end(session))

    def close(self) -> None:
        """Close all sessions and end the thread. Calling it twice is allowed; a later call starts again.

        It also happens when the server is forgotten, and at the end of the process.
        """
        self._sessions.close()


class _OpenSessions:
    """Sessions and the thread in which they live. It starts with the first piece of work."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._running: tuple[LoopThread, Sessions] | None = None

    async def call(self, work: Callable[[Sessions], Coroutine[Any, Any, T]]) -> T:
        thread, sessions = self._start()
        return await thread.call(work(sessions))

    def run(self, work: Callable[[Sessions], Coroutine[Any, Any, T]]) -> T:
        thread, sessions = self._start()
        return thread.run(work(sessions))

    def _start(self) -> tuple[LoopThread, Sessions]:
        with self._lock:
            if self._running is None:
                self._running = LoopThread("aepo-mcp", _closed), Sessions(self._settings)
            return self._running

    def close(self) -> None:
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        thread, sessions = running
        with suppress(TimeoutError):
            thread.run(asyncio.wait_for(sessions.close(), _CLOSE_S))
        thread.close(_CLOSE_S)


def _closed() -> ToolUnavailableError:
    return ToolUnavailableError("the sessions with the server were closed.")


def _name(command: Sequence[str], url: str) -> str:
    """Name a server for messages by its host or its program: the rest of either may hold a key."""
    if url:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    rest = f" with {len(command) - 1} arguments" if len(command) > 1 else ""
    return Path(command[0]).name + rest


def _client(mcp: Any, command: Sequence[str], url: str, env: Mapping[str, str]) -> Any:
    if url:
        return mcp.Client(url)
    # One byte that is no UTF-8 must not end the session.
    target = mcp.StdioServerParameters(command=command[0], args=command[1:], env=env, encoding_error_handler="replace")
    return mcp.Client(target)


def _secrets(command: Sequence[str], url: str, env: Mapping[str, str]) -> list[str]:
    """Return what must not stand in a message, longest first: what any of it contains may be a key."""
    parts = urlsplit(url)
    of_url = [
        url,
        parts.netloc.rpartition("@")[0],
        parts.path,
        parts.query,
        *(value for _, value in parse_qsl(parts.query)),
    ]
    found = {each for each in (*of_url, *command[1:], *env.values()) if len(each) >= _MIN_SECRET_CHARS}
    return sorted(found, key=len, reverse=True)


def _hide(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
