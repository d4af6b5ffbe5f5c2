"""One vLLM server over HTTP: requests, deadlines, and errors that say whose fault they are."""

import asyncio
import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NoReturn

import aiohttp

from aepo_lightning.errors import ConfigError, EngineError

_GENERATE = "/inference/v1/generate"
ID_PREFIX = "generate-tokens-"
"""What a server puts before the request ids that clients choose."""
_REQUEST_FAULTS = (400, 413, 422)
_BUSY = (408, 425, 429, 502, 503, 504)
_FINAL = (401, 403, 404, 405)
_KEEP_ALIVE_S = 3.0
"""Below the 5 s after which servers close idle connections: a request must not meet a connection that is closing."""
_ABORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 0.5
_EXCERPT = 200
_CHUNK_BYTES = 1 << 16
_QUICK = 1 << 20
"""Bytes that answers to anything but requests for tokens stay far below."""

LAUNCH_ADVICE = "Start servers with `python -m aepo_lightning.engines.vllm_server.launch MODEL`."


class Fault(Enum):
    """What an endpoint did wrong, as far as it matters for what to do next."""

    ANSWER = auto()
    """What it answered cannot be used."""
    INTERNAL = auto()
    """It failed at what it was asked."""
    SILENT = auto()
    """It did not answer, or not to the end, and may still be working on the request."""
    BUSY = auto()
    """It cannot be reached, is overloaded, or waits for something. What it was asked is not the cause."""
    FINAL = auto()
    """It is not what the pool needs, such as a server that lacks a route."""


class EndpointError(EngineError):
    """One endpoint cannot serve; another may, or this one later."""

    def __init__(self, message: str, fault: Fault = Fault.ANSWER) -> None:
        """Describe what went wrong.

        Args:
            message: What happened, without the address.
            fault: Its kind.
        """
        super().__init__(message)
        self.fault = fault

    @property
    def may_pass(self) -> bool:
        """Whether the endpoint may be well again by itself."""
        return self.fault in (Fault.BUSY, Fault.SILENT, Fault.INTERNAL)


class RequestError(EngineError):
    """The server refused what was asked; every other server would too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How patient a pool is with its servers."""

    max_retries: int = 3
    """Further attempts, on other endpoints where there are any, after a request failed. A server that is overloaded or
    cannot be reached uses up none."""
    request_timeout_s: float = 600.0
    """For one answer, waiting in the server's queue included."""
    ready_timeout_s: float = 120.0
    """How long the first use waits for servers that are still starting."""
    outage_timeout_s: float = 600.0
    """How long to wait for a server to come back when none is left."""
    max_answer_bytes: int = 256 << 20
    """Longer answers are refused while they come in."""
    health_timeout_s: float = 10.0
    health_interval_s: float = 5.0
    update_timeout_s: float = 600.0
    """For each step of a weight update."""
    chunk_bytes: int = 1 << 30
    """Size at which a file of published weights is closed and the next begun."""
    sleep_level: int = 0
    """What `sleep` asks of the servers: 0 nothing, 1 or 2 as vLLM defines them (needs `--enable-sleep-mode`)."""
    api_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        times = ("request_timeout_s", "health_timeout_s", "health_interval_s", "update_timeout_s")
        for name in (*times, "chunk_bytes", "max_answer_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, but got {getattr(self, name)}.")
        for name in ("max_retries", "ready_timeout_s", "outage_timeout_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` must not be negative, but got {getattr(self, name)}.")
        if self.sleep_level not in (0, 1, 2):
            raise ConfigError(f"`sleep_level` must be 0, 1 or 2, but got {self.sleep_level}.")


class ServerClient:
    """Asks one server. All methods run in one event loop."""

    def __init__(self, url: str, settings: ServerSettings) -> None:
        """Keep the address; nothing is opened before the first call.

        Raises:
            ConfigError: If the address is not one of HTTP.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"`endpoints` must be addresses such as 'http://node:8000', but got {url!r}.")
        self.url = url.rstrip("/")
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._aborts: set[asyncio.Task[Any]] = set()

    async def get(self, path: str) -> Any:
        """Return what the server answers to a quick question.

        Raises:
            EndpointError: If it does not answer with JSON or nothing, and status 200, in time.
        """
        return await self._send("GET", path, self._settings.health_timeout_s)

    async def post(self, path: str, body: dict[str, Any] | None = None, timeout_s: float | None = None) -> Any:
        """Tell the server to do something and return what it answers.

        Raises:
            EndpointError: As for `get`.
        """
        return await self._send("POST", path, timeout_s or self._settings.health_timeout_s, body)

    async def generate(self, body: dict[str, Any], timeout_s: float | None = None) -> Any:
        """Return the answer to a request for tokens. One that is given up is aborted on the server.

        Raises:
            RequestError: If the server refuses the request itself.
            EndpointError: If it fails or answers too late.
        """
        try:
            return await self._send("POST", _GENERATE, timeout_s or self._settings.request_timeout_s, body)
        except asyncio.CancelledError:
            self._abort(body["request_id"])
            raise
        except EndpointError as error:
            if error.fault is Fault.SILENT:
                self._abort(body["request_id"])
            raise

    async def close(self) -> None:
        """Report what was given up, as far as the server still listens, and close the connections."""
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=_CLOSE_TIMEOUT_S)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _abort(self, request_id: str) -> None:
        # A server notices a closed connection by itself, but a proxy before it may not pass that on.
        body = {"request_ids": [ID_PREFIX + request_id]}
        task = asyncio.ensure_future(self._send("POST", "/inference/v1/abort_requests", _ABORT_TIMEOUT_S, body))
        self._aborts.add(task)
        task.add_done_callback(self._forget_abort)

    def _forget_abort(self, task: "asyncio.Task[Any]") -> None:
        self._aborts.discard(task)
        if not task.cancelled():
            task.exception()  # a dead server has nothing to abort

    async def _send(self, method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        headers = {} if body is None or "request_id" not in body else {"X-Request-Id": body["request_id"]}
        try:
            async with self._open().request(
                method, self.url + path, json=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as reply:
                status, content = reply.status, await self._read(reply, path)
        except TimeoutError as error:
            raise EndpointError(f"did not answer {path} within {timeout_s:g} s", Fault.SILENT) from error
        except aiohttp.ClientConnectorError as error:
            raise EndpointError(f"broke the connection of {path}: {error!r}", Fault.BUSY) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointError(f"broke the connection of {path}: {error!r}", Fault.SILENT) from error
        if status != 200:
            raise _status_error(status, path, content)
        try:
            return json.loads(content, parse_constant=_refuse_constant) if content else {}
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"answered {path} with something that is not JSON: {_excerpt(content)}") from error

    async def _read(self, reply: aiohttp.ClientResponse, path: str) -> bytes:
        limit = self._settings.max_answer_bytes if path == _GENERATE else min(self._settings.max_answer_bytes, _QUICK)
        content = bytearray()
        async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
            content += chunk
            if len(content) > limit:
                reply.close()
                raise EndpointError(f"answered {path} with more than {limit} bytes (`max_answer_bytes`)")
        return bytes(content)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = self._settings.api_key
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                # A compressed answer may be a thousand times larger than what comes in.
                headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
                auto_decompress=False,
            )
        return self._session


def _status_error(status: int, path: str, content: bytes) -> EngineError:
    if path == _GENERATE and status in _REQUEST_FAULTS:
        return RequestError(f"The server refused the request with status {status}: {_excerpt(content)}")
    advice, fault = "", Fault.ANSWER
    if status in _FINAL:
        advice, fault = f". {LAUNCH_ADVICE}", Fault.FINAL
    elif status in _BUSY:
        fault = Fault.BUSY
    elif status >= 500:
        fault = Fault.INTERNAL
    return EndpointError(f"answered {path} with status {status}: {_excerpt(content)}{advice}", fault)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _excerpt(content: bytes) -> str:
    return content[:_EXCERPT].decode(errors="replace")
