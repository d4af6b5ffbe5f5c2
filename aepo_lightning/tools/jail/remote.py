"""The remote back end: a sandbox service that speaks the SandboxFusion protocol, `POST /run_code`."""

import asyncio
import json
import secrets
import time
from typing import Any

import aiohttp

from aepo_lightning.tools.jail.execution import Execution, ExitKind, Isolation, SandboxUnavailableError
from aepo_lightning.tools.jail.inside.job import Job, name_exit
from aepo_lightning.tools.jail.program import write_program
from aepo_lightning.tools.jail.settings import PoolSettings
from aepo_lightning.tools.jail.slots import SlotQueue

_GRACE_S = 10.0
_START_S = 30.0
_ENVELOPE_BYTES = 1 << 16
_MAX_GROWTH = 6  # JSON writes a control character as six


class RemoteSandbox:
    """Sends code to a service. Opening blocks until it has answered once.

    How well code is walled in there is the service's business: SandboxFusion's own example configuration uses none.

    Args:
        settings: Limits, and the address.

    Raises:
        SandboxUnavailableError: If there is no address, or what is there does not run code.
    """

    def __init__(self, settings: PoolSettings) -> None:
        if not settings.remote_url:
            raise SandboxUnavailableError("no remote sandbox is set")
        self._settings = settings
        self._url = settings.remote_url.rstrip("/") + "/run_code"
        self._queue = SlotQueue[int](max_active=settings.workers, max_waiting=settings.max_waiting)
        for index in range(settings.workers):
            self._queue.add(index)
        answer = asyncio.run(self.run(Job(code="6 * 7", timeout_s=_START_S, stdin="", seed=0)))
        if answer.exit != ExitKind.OK or answer.stdout.strip() != "42":
            raise SandboxUnavailableError(f"remote sandbox at {settings.remote_url}: {answer.stderr or answer.stdout}")

    @property
    def isolation(self) -> Isolation:
        """As good as the configuration of the service."""
        description = f"remote sandbox at {self._settings.remote_url}; its isolation is what it was configured with"
        return Isolation(level="remote", description=description)

    @property
    def num_ready(self) -> int:
        """Calls that can run at a time."""
        return self._settings.workers

    async def run(self, job: Job) -> Execution:
        """Send code to the service; an answer that is none becomes `LOST`."""
        asked = time.perf_counter()
        lease = await self._queue.acquire()
        started = time.perf_counter()
        try:
            mark = secrets.token_hex(16)  # what the code writes itself cannot be mistaken for it
            reply = await self._post(job, mark)
            stdout, stderr, kind, code = self._read(reply, mark)
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            stdout, stderr, kind, code = "", f"The remote sandbox failed: {reason}", ExitKind.LOST, None
        finally:
            self._queue.release(lease, is_usable=True)
        return Execution(
            stdout=stdout,
            stderr=stderr,
            exit=kind,
            exit_code=code,
            duration_s=time.perf_counter() - started,
            queue_s=started - asked,
        )

    def close(self) -> None:
        """Nothing stays open between calls."""

    async def _post(self, job: Job, mark: str) -> dict[str, Any]:
        payload = {
            "code": write_program(job, mark),
            "language": "python",
            "compile_timeout": job.timeout_s,
            "run_timeout": job.timeout_s,
            "memory_limit_MB": self._settings.memory_mb,
            "stdin": None,
            "files": {},
            "fetch_files": [],
        }
        most = 2 * _MAX_GROWTH * self._settings.max_output_bytes + _ENVELOPE_BYTES
        timeout = aiohttp.ClientTimeout(total=job.timeout_s + _GRACE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(self._url, json=payload, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"it answered with HTTP status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > most:
                    raise ValueError(f"it sent more than {most} bytes")
        reply = json.loads(body)
        if not isinstance(reply, dict):
            raise ValueError("it answered with something else than an object")
        return reply

    def _read(self, reply: dict[str, Any], mark: str) -> tuple[str, str, ExitKind, int | None]:
        result = reply.get("run_result")
        if reply.get("status") == "SandboxError" or not isinstance(result, dict):
            raise ValueError(f"it reported {reply.get('status')}: {str(reply.get('message'))[:200]}")
        most = self._settings.max_output_bytes
        stdout, stderr = (str(result.get(name) or "").encode("utf-8", "replace") for name in ("stdout", "stderr"))
        code = result.get("return_code")
        kind = ExitKind(name_exit(code if isinstance(code, int) else 1, mark.encode() in stderr))
        stderr = stderr.replace(mark.encode(), b"")
        if max(len(stdout), len(stderr)) > most:
            kind = ExitKind.OUTPUT
        if result.get("status") == "TimeLimitExceeded":
            kind = ExitKind.TIMEOUT
        shown = [data[:most].decode("utf-8", "replace") for data in (stdout, stderr)]
        return shown[0], shown[1], kind, code if isinstance(code, int) else None
