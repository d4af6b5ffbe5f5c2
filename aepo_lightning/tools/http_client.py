"""Requests to providers over HTTP: one connection pool for each event loop, and every failure named for what it is."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from yarl import URL

from aepo_lightning.errors import ToolError, ToolUnavailableError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
_MAX_RETRY_AFTER_S = 300.0
_REFUSED = (401, 402, 403, 432, 433)  # the last two: limits of a plan, by Tavily
_TOO_MANY = 429
_BAD_REQUEST = (400, 413, 414, 422, 431)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What is sent."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    """Sent as JSON, if there is any."""


class JsonClient:
    """Sends requests and reads JSON.

    Sessions belong to event loops: one is opened at a loop's first request and should be closed before the loop ends.
    Proxies and credentials of the environment are not used.
    """

    def __init__(self, max_connections: int = 512, timeout_s: float = 30.0, max_bytes: int = 4 << 20) -> None:
        """Keep the settings.

        Args:
            max_connections: Open at the same time.
            timeout_s: For one request, from the first byte sent to the last byte read.
            max_bytes: Longer answers are refused.
        """
        self._max_connections = max_connections
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_bytes = max_bytes
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def send(self, request: HttpRequest) -> Any:
        """Return the JSON of an answer.

        Raises:
            ToolUnavailableError: If there is no answer, not a whole one, one that is not JSON, or one that says that
                the server failed, is overloaded, or refuses the key.
            ToolError: If the server says that the request is wrong.
        """
        host = URL(request.url).host or request.url
        try:
            async with self._session().request(
                request.method,
                request.url,
                headers=dict(request.headers),
                params=dict(request.params),
                json=request.body,
                allow_redirects=False,
            ) as response:
                self._check_status(response, host)
                content = await self._read(response, host)
        except TimeoutError:
            raise ToolUnavailableError(f"{host} did not answer in time.") from None
        except aiohttp.ClientError as error:
            raise ToolUnavailableError(f"{host} could not be reached ({type(error).__name__}).") from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ToolUnavailableError(f"{host} answered with something that is not JSON.") from None

    def _check_status(self, response: aiohttp.ClientResponse, host: str) -> None:
        status = response.status
        if status == _TOO_MANY:
            raise ToolUnavailableError(f"{host} is asked too often.", retry_after_s=_retry_after(response))
        if status in _REFUSED:
            logger.error("%s refused a request with status %d. Check the key and the account.", host, status)
            raise ToolUnavailableError(f"{host} refused the request (status {status}).")
        if status in _BAD_REQUEST:
            raise ToolError(f"{host} did not understand the request (status {status}).")
        if status >= 400:  # 404, 405, ...: the address in the configuration is wrong, and no other query would help
            raise ToolUnavailableError(f"{host} failed (status {status}).", retry_after_s=_retry_after(response))
        if status >= 300:
            raise ToolUnavailableError(f"{host} sent the request elsewhere (status {status}).")

    async def _read(self, response: aiohttp.ClientResponse, host: str) -> bytes:
        content = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            content += chunk
            if len(content) > self._max_bytes:
                raise ToolUnavailableError(f"{host} answered with more than {self._max_bytes} bytes.")
        return bytes(content)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            for finished in [known for known in self._sessions if known.is_closed()]:
                del self._sessions[finished]
            connector = aiohttp.TCPConnector(limit=self._max_connections, limit_per_host=0, ttl_dns_cache=300)
            self._sessions[loop] = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self._sessions[loop]

    async def close(self) -> None:
        """Close the connections of the running event loop. Calling it twice is allowed."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Return how many seconds an answer asks to wait, given as a number or a date, or None."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else None
