"""Fetches pages from the public internet: limited in size, time, type and number of redirects."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urljoin, urlsplit

import aiohttp

from aepo_lightning.errors import ToolError, ToolUnavailableError
from aepo_lightning.tools.browse.addresses import ForbiddenAddressError, guarded_socket

_CHUNK_BYTES = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_USER_AGENT = "Mozilla/5.0 (compatible; aepo-lightning)"
_MAX_URL_CHARS = 2000
_OVERLOADED = (429, 502, 503, 504)
KINDS = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "text/plain": "text",
    "text/markdown": "text",
    "text/csv": "text",
    "application/json": "text",
    "application/xml": "text",
    "text/xml": "text",
}
"""Content types that are read, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What was fetched."""

    url: str
    """After redirects."""
    kind: str
    """`html`, `pdf` or `text`."""
    content: bytes
    charset: str | None = None
    is_cut: bool = False
    """The page went on."""


@runtime_checkable
class Fetcher(Protocol):
    """Finds the page of an address."""

    digest: str
    """Names what it finds pages in: another stock of pages has another one. Empty for the internet."""

    async def fetch(self, url: str) -> Page:
        """Return a page.

        Raises:
            ToolError: If there is no page that may be read.
            ToolUnavailableError: If a server failed.
        """
        ...

    async def close(self) -> None:
        """Free what the running event loop holds."""
        ...


class PageFetcher:
    """Fetches pages; connections belong to event loops."""

    digest: str = ""

    def __init__(
        self,
        *,
        timeout_s: float = 20.0,
        max_bytes: int = 2 << 20,
        max_redirects: int = 5,
        max_connections: int = 64,
        make_socket: Callable[[tuple[Any, ...]], socket.socket] = guarded_socket,
    ) -> None:
        """Keep the limits.

        Args:
            timeout_s: For one page, redirects included.
            max_bytes: After decompression. HTML and text are cut there; longer PDF files are refused.
            max_redirects: Longer chains are refused.
            max_connections: Open at the same time.
            make_socket: Makes the socket for an address, or refuses it. The default refuses all that is not public.
        """
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._max_connections = max_connections
        self._make_socket = make_socket
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def fetch(self, url: str) -> Page:
        """Return a page.

        Raises:
            ToolError: If the address is not that of a page that may be read, or there is none.
            ToolUnavailableError: If the server could not be reached or failed.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url)
        except TimeoutError:
            raise ToolUnavailableError("the page did not arrive in time.") from None
        except ForbiddenAddressError:
            raise ToolError("the address is not on the public internet.") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError):
            raise ToolError("the address is not one of a web page.") from None
        except aiohttp.ClientError as error:
            if isinstance(getattr(error, "os_error", None), ForbiddenAddressError):
                raise ToolError("the address is not on the public internet.") from None
            raise ToolUnavailableError(f"the page could not be reached ({type(error).__name__}).") from error

    async def _follow(self, url: str) -> Page:
        for _ in range(self._max_redirects + 1):
            _check(url)
            async with self._session().get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(url, response)
                url = urljoin(url, response.headers.get("Location", ""))
        raise ToolError(f"the page redirects more than {self._max_redirects} times.")

    async def _read(self, url: str, response: aiohttp.ClientResponse) -> Page:
        if response.status in _OVERLOADED:
            raise ToolUnavailableError(f"the server answered with status {response.status}.")
        if response.status >= 400:
            raise ToolError(f"the server answered with status {response.status}.")
        kind = KINDS.get(response.content_type)
        if kind is None:
            raise ToolError(f"pages of the type {response.content_type[:60]} cannot be read.")
        content = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            content += chunk
            if len(content) > self._max_bytes:
                break
        is_cut = len(content) > self._max_bytes
        if is_cut and kind == "pdf":
            raise ToolError(f"the file is longer than {self._max_bytes} bytes.")
        return Page(
            url=url, kind=kind, content=bytes(content[: self._max_bytes]), charset=response.charset, is_cut=is_cut
        )

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            for finished in [known for known in self._sessions if known.is_closed()]:
                del self._sessions[finished]
            connector = aiohttp.TCPConnector(limit=self._max_connections, socket_factory=self._make_socket)
            self._sessions[loop] = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": _USER_AGENT},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # a proxy of the environment would connect for us, past the guard
                requote_redirect_url=False,
            )
        return self._sessions[loop]

    async def close(self) -> None:
        """Close the connections of the running event loop. Calling it twice is allowed."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()


def _check(url: str) -> None:
    if len(url) > _MAX_URL_CHARS:
        raise ToolError("the address is too long.")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ToolError("the address must begin with http:// or https:// and name a host.")
    if parts.username or parts.password:
        raise ToolError("the address must not hold a password.")
