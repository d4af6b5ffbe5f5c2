"""Sessions with one MCP server inside one event loop: a few that all chains share, and those that chains have alone."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.errors import ToolError, ToolUnavailableError, boundary
from aepo_lightning.printable import printable

logger = logging.getLogger(__name__)

_CONNECTION_CLOSED, _REQUEST_TIMEOUT = -32000, -32001
_PATIENCE_S = 2.0
_MAX_PAGES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How sessions are opened."""

    connect: Callable[[], Any]
    """Returns a client that is not entered yet."""
    name: str
    """Of the server, for messages."""
    hide: Callable[[str], str]
    """Takes secrets out of a message."""
    num_shared: int
    connect_timeout_s: float


@dataclass(eq=False, slots=True)
class Session:
    """One open session. It is entered and left by one task, as the client asks for."""

    client: Any
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    num_calls: int = 0
    """Calls that run on it now."""
    is_retired: bool = False
    """It takes no further calls, and ends with the last of those that run."""


class Sessions:
    """Opens, lends and ends sessions. Everything runs in the event loop in which it was made."""

    def __init__(self, settings: SessionSettings) -> None:
        """Keep the settings; nothing is opened yet."""
        self._settings = settings
        self._shared: list[Session] = []
        self._opening: asyncio.Task[None] | None = None
        self._own: dict[str, asyncio.Task[Session]] = {}
        self._num_users: dict[str, int] = {}
        self._lost: set[str] = set()
        self._keepers: set[asyncio.Task[None]] = set()

    async def list_tools(self) -> list[Any]:
        """Return the server's tools, from all pages of its list."""
        found: list[Any] = []
        with self._used(await self._pick_shared()) as session:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                cursor: str | None = None
                for _ in range(_MAX_PAGES):
                    page = await session.client.list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if not cursor:
                        break
        return found

    async def call(self, name: str, arguments: dict[str, Any], own: str) -> Any:
        """Call a tool on a shared session, or on a chain's own one."""
        with self._used(await (self._pick_own(own) if own else self._pick_shared())) as session:
            return await session.client.call_tool(name, arguments)

    async def begin(self, own: str) -> None:
        """Note that one more tool uses a chain's own session."""
        self._num_users[own] = self._num_users.get(own, 0) + 1

    async def end(self, own: str) -> None:
        """Note that one tool less uses a chain's own session, and close it after the last."""
        self._num_users[own] = self._num_users.get(own, 1) - 1
        if self._num_users[own] > 0:
            return
        del self._num_users[own]
        self._lost.discard(own)
        opening = self._own.pop(own, None)
        if opening is None:
            return
        if opening.done():
            self._retire(opening.result())
        else:
            opening.cancel()

    async def close(self) -> None:
        """End all sessions, also those with calls."""
        openings = [task for task in (self._opening, *self._own.values()) if task is not None]
        for task in openings:
            task.cancel()
        await asyncio.gather(*openings, return_exceptions=True)
        sessions = [*self._shared, *(task.result() for task in self._own.values() if _is_open(task))]
        self._shared, self._own = [], {}
        for session in sessions:
            session.ending.set()
        # A second cancellation would cut off how a client ends its program, so nobody else may cancel these tasks.
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _used(self, session: Session) -> "_Use":
        return _Use(self, session)

    async def _pick_shared(self) -> Session:
        """Return the least busy session. A busy one is lent if there is no room for another, or that takes long."""
        while True:
            least = min(self._shared, key=lambda session: session.num_calls, default=None)
            if least is not None and (not least.num_calls or len(self._shared) >= self._settings.num_shared):
                return least
            if self._opening is None or self._opening.done():
                self._opening = asyncio.ensure_future(self._open_shared())
                self._opening.add_done_callback(_look_at)
            if least is None:
                await asyncio.shield(self._opening)
                continue
            await asyncio.wait({self._opening}, timeout=_PATIENCE_S)
            if self._shared and not _is_open(self._opening):
                return min(self._shared, key=lambda session: session.num_calls)

    async def _open_shared(self) -> None:
        self._shared.append(await self._open())

    async def _pick_own(self, own: str) -> Session:
        if own in self._lost:
            raise ToolUnavailableError("the session with the server was lost, and what it remembered with it.")
        if own not in self._own:
            self._own[own] = asyncio.ensure_future(self._open())
            self._own[own].add_done_callback(_look_at)
        opening = self._own[own]
        try:
            return await asyncio.shield(opening)
        finally:
            if opening.done() and not _is_open(opening) and self._own.get(own) is opening:
                del self._own[own]

    async def _open(self) -> Session:
        opened: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        keeper = asyncio.ensure_future(self._keep(opened))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)
        failure: list[Exception] = []
        is_open = False
        try:
            with boundary(failure.append):
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    session = await asyncio.shield(opened)
                is_open = True
                return session
        finally:
            if not is_open:  # also when the one who waits is cancelled
                keeper.cancel()
                opened.cancel()
        reason = self.reason(failure[0])
        logger.warning("The MCP server %s could not be reached: %s", self._settings.name, printable(reason))
        raise ToolUnavailableError(f"the server could not be reached ({reason}).")

    async def _keep(self, opened: asyncio.Future[Session]) -> None:
        """Enter a client, hand it over, and leave it when it is no longer wanted."""

        def report(error: Exception) -> None:
            if not opened.done():
                opened.set_exception(error)
            else:
                logger.info("A session with %s ended with %s", self._settings.name, self.reason(error))

        with boundary(report):
            async with self._settings.connect() as client:
                if opened.done():
                    return
                session = Session(client)
                opened.set_result(session)
                await session.ending.wait()

    def drop(self, session: Session) -> None:
        """Lend a session no more: nobody knows what it would still receive. Calls of others on it go on."""
        if session in self._shared:
            self._shared.remove(session)
        for name in [name for name, task in self._own.items() if _is_open(task) and task.result() is session]:
            del self._own[name]
            self._lost.add(name)
        self._retire(session)

    def _retire(self, session: Session) -> None:
        session.is_retired = True
        if not session.num_calls:
            session.ending.set()

    def reason(self, error: BaseException) -> str:
        """Return an error in one line, without secrets."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = self._settings.hide(str(error)).strip().splitlines()
        return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


class _Use:
    """One call on a session: counted, and the session dropped if the call did not come back."""

    def __init__(self, sessions: Sessions, session: Session) -> None:
        self._sessions, self._session = sessions, session

    def __enter__(self) -> Session:
        self._session.num_calls += 1
        return self._session

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._session.num_calls -= 1
        if self._session.is_retired and not self._session.num_calls:
            self._session.ending.set()
        if error is None:
            return
        reason = self._sessions.reason(error)
        code = getattr(getattr(error, "error", None), "code", None)
        if code is not None and code not in (_CONNECTION_CLOSED, _REQUEST_TIMEOUT):
            raise ToolError(f"the server refused the call: {reason}") from error
        self._sessions.drop(self._session)
        if isinstance(error, Exception):
            raise ToolUnavailableError(f"the server failed ({reason}).") from error


def _is_open(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _look_at(task: asyncio.Task[Any]) -> None:
    """Take note of a failure that nobody may be waiting for any more."""
    with suppress(asyncio.CancelledError):
        task.exception()
