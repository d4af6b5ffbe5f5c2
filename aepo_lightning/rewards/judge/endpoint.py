"""Requests to an endpoint with OpenAI's chat protocol, and every failure named for what it is.

Connections are not kept: an answer takes a model seconds, and none is left to close at the end of an event loop.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from aepo_lightning.errors import ConfigError, boundary
from aepo_lightning.event_loop import call_in_thread
from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.prompt import Prompt
from aepo_lightning.rewards.judge.reply import Reply, read_completion

logger = logging.getLogger(__name__)

_MAX_REPLY_BYTES = 1 << 20
_MAX_ERROR_BYTES = 4096
_NO_KEY = "none"
"""What servers that ask for no key are sent: the client insists on one."""
_VARIABLE = re.compile("[A-Z][A-Z0-9_]*")
_OWN = frozenset({"model", "messages", "n", "stream", "response_format"})
_MISUNDERSTOOD = (400, 422, 500, 501)
"""What servers answer that do not know the schema of a request, or stumble over it."""
_PASSING = (408, 409, 425, 429)
_KEY_REFUSED = (401, 402, 403, 407)
_OUT_OF_QUOTA = b"insufficient_quota"


class JudgeEndpoint:
    """Sends prompts to one model behind one address.

    The reply is asked for by JSON schema. Where a server does not take that, it is asked without from then on.

    Args:
        base_url: Of the API, such as http://127.0.0.1:8000/v1.
        model: Its name there.
        api_key_env: Name of the environment variable with the key. None for servers that ask for none.
        request: Further fields of a request; None leaves out what is sent else.
        timeout_s: For one request.
        max_tokens: Of a reply.
        on_request: Called for each request that is sent.

    Raises:
        ConfigError: If an argument has no meaning, the variable is not set, or the `openai` package is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None,
        request: Mapping[str, Any],
        timeout_s: float,
        max_tokens: int,
        on_request: Callable[[], None],
    ) -> None:
        _check_url(base_url)
        _check_key(api_key_env)
        if taken := sorted(_OWN & request.keys()):
            raise ConfigError(f"`request` of a judge must not set {', '.join(taken)}: the judge does. Leave it out.")
        if request.get("temperature") not in (None, 0):
            raise ConfigError(
                f"`temperature` of a judge must be 0, but got {request['temperature']!r}. Leave it out, or set null "
                "for a model that takes no temperature."
            )
        if find_spec("openai") is None:
            raise ConfigError("A judge needs openai, which is not installed: pip install 'aepo-lightning[judge]'.")
        self._url = base_url
        self._key_variable = api_key_env
        self._timeout_s = timeout_s
        self._on_request = on_request
        fields = {"temperature": 0, "max_tokens": max_tokens} | dict(request)
        self._name = model
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self._takes_schema, self._has_taken_schema = True, False
        self._openai: ModuleType | None = None
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    async def ask(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
        """Send a prompt once, or twice to a server that turns out not to take the schema.

        Raises:
            JudgeFailure: If there is no reply, for whatever reason.
        """
        if not self._takes_schema:
            return await self._send(prompt, None)
        try:
            reply = await self._send(prompt, schema)
        except _MisunderstoodError:
            if self._has_taken_schema:
                raise
        else:
            self._takes_schema = self._has_taken_schema = True
            return reply
        reply = await self._send(prompt, None)
        if self._has_taken_schema:  # for another claim, meanwhile
            return reply
        if self._takes_schema:
            logger.warning("The judge %s does not take the JSON schema of its reply and is asked without.", self._name)
        self._takes_schema = False
        return reply

    async def _send(self, prompt: Prompt, schema: Mapping[str, Any] | None) -> Reply:
        openai = await self._imported()
        fields = dict(self.fields)
        if schema is not None:
            form = {"name": "verdict", "strict": True, "schema": dict(schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": form}
        failures: list[Exception] = []
        with boundary(failures.append):
            body, content_type = await self._exchange(openai, prompt, fields)
        if failures:
            raise _named(failures[0], openai) from None
        return read_completion(self._without_key(body), content_type)

    async def _exchange(self, openai: ModuleType, prompt: Prompt, fields: Mapping[str, Any]) -> tuple[bytes, str]:
        self._on_request()
        completions = self._client(openai).chat.completions.with_streaming_response
        create = completions.create(model=self._name, messages=prompt.messages(), extra_body=fields)
        async with create as response:
            body = await _read(response.iter_bytes(), _MAX_REPLY_BYTES + 1)
            if len(body) > _MAX_REPLY_BYTES:
                raise JudgeFailure(AbstentionKind.MALFORMED, f"answered with more than {_MAX_REPLY_BYTES} bytes")
            return body, response.headers.get("Content-Type", "")

    async def _imported(self) -> ModuleType:
        """Return the client's package, imported in a thread: it is large.

        Raises:
            ConfigError: If it cannot be imported.
        """
        if self._openai is None:
            try:
                self._openai = await call_in_thread(partial(import_module, "openai"), "aepo-judge")
            except ImportError as error:
                raise ConfigError(
                    f"A judge needs openai, which cannot be imported: {error}. Install it anew."
                ) from error
        return self._openai

    def _client(self, openai: ModuleType) -> Any:
        """Return the client of the running event loop. Proxies and settings of the environment are not used."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            http_client = openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                trust_env=False,
                verify=self._url.startswith("https"),  # a context of certificates costs more than many a request
                timeout=self._timeout_s,
                headers={"Accept-Encoding": "identity", "Connection": "close"},
                event_hooks={"response": [self._check_status]},
            )
            absent = openai.omit
            self._clients[loop] = openai.AsyncOpenAI(
                base_url=self._url,
                api_key=self._key() or _NO_KEY,
                max_retries=0,
                timeout=self._timeout_s,
                http_client=http_client,
                default_headers={"OpenAI-Organization": absent, "OpenAI-Project": absent},
            )
        return self._clients[loop]

    async def _check_status(self, response: Any) -> None:
        if response.status_code < 300:
            return
        body = self._without_key(await _read(response.aiter_bytes(), _MAX_ERROR_BYTES))
        raise _refusal(response.status_code, response.headers, body)

    def _key(self) -> str:
        return os.environ.get(self._key_variable, "") if self._key_variable else ""

    def _without_key(self, body: bytes) -> bytes:
        """Return what a server sent without the key, which some repeat."""
        key = self._key().encode()
        return body.replace(key, b"***") if key else body


class _MisunderstoodError(JudgeFailure):
    """The server does not understand the request, or fails at it, which may be the schema's doing."""


async def _read(chunks: Any, max_bytes: int) -> bytes:
    body = bytearray()
    async with aclosing(chunks):
        async for chunk in chunks:
            body += chunk
            if len(body) >= max_bytes:
                break
    return bytes(body)


def _named(error: Exception, openai: ModuleType) -> JudgeFailure:
    """Return what a failure of the client means. Its words are left out: they may hold the address."""
    for each in (error, error.__cause__):
        if isinstance(each, JudgeFailure):
            return each
    causes = {kind.__name__ for each in (error, error.__cause__) for kind in type(each).__mro__}
    if isinstance(error, openai.APITimeoutError) or "TimeoutException" in causes:
        return JudgeFailure(AbstentionKind.TIMEOUT, "did not answer in time", can_pass=True)
    kind = type(error.__cause__ or error).__name__
    if isinstance(error, openai.APIConnectionError) or "HTTPError" in causes:
        return JudgeFailure(AbstentionKind.UNREACHABLE, f"could not be reached ({kind})", can_pass=True)
    return JudgeFailure(AbstentionKind.FAILED, f"could not be asked ({kind})")


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> JudgeFailure:
    """Return what a status means."""
    wait_s = _retry_after(headers)
    if status < 400:
        return JudgeFailure(AbstentionKind.REDIRECTED, f"sends requests elsewhere (status {status})")
    if status in _KEY_REFUSED:
        return JudgeFailure(AbstentionKind.REFUSED, f"refuses the key or the account (status {status})")
    if status == 429 and _OUT_OF_QUOTA in body:
        return JudgeFailure(AbstentionKind.REFUSED, "has no quota left for the account (status 429)")
    if status == 429:
        text = "is asked too often" if wait_s is None else f"is asked too often and asks to wait {wait_s:g} s"
        return JudgeFailure(AbstentionKind.BUSY, text, can_pass=True, retry_after_s=wait_s)
    kind = _MisunderstoodError if status in _MISUNDERSTOOD else JudgeFailure
    if status in _PASSING or (status >= 500 and status != 501):
        return kind(AbstentionKind.FAILED, f"failed (status {status})", can_pass=True, retry_after_s=wait_s)
    said = " ".join(body.decode("utf-8", "replace").split())
    return kind(AbstentionKind.REFUSED, f"refuses the request (status {status}): {said!r:.240}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait, in milliseconds, seconds or as a date, or None."""
    for name, scale in (("Retry-After-Ms", 1e-3), ("Retry-After", 1.0)):
        if (text := headers.get(name, "").strip()) == "":
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                continue
        if seconds == seconds:
            return max(seconds, 0.0)
    return None


def _check_url(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        has_secret = "@" in parts.netloc
    except ValueError:
        is_plain, has_secret = False, "@" in base_url
    if has_secret:
        raise ConfigError("`base_url` of a judge must hold no user or password, but does. Use `api_key_env` for a key.")
    if not is_plain:
        raise ConfigError(
            f"`base_url` of a judge must be an http address without a query, but got {base_url.partition('?')[0]!r}. "
            "Use one such as http://127.0.0.1:8000/v1."
        )


def _check_key(variable: str | None) -> None:
    if variable is None:
        return
    if not _VARIABLE.fullmatch(variable):  # it may be the key itself, which no message shows
        raise ConfigError(
            "`api_key_env` of a judge must be the name of an environment variable in capitals, but got another text. "
            "Export the key under a name such as JUDGE_API_KEY and give that name."
        )
    key = os.environ.get(variable, "")
    if not key.strip():
        raise ConfigError(f"The environment variable {variable} must hold the key of the judge, but is empty. Set it.")
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ConfigError(
            f"The environment variable {variable} must hold printable ASCII without white space around it. Look for a "
            "line break at its end, and set it again."
        )
