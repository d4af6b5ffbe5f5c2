"""One worker: a jailed zygote as a process of the host, its socket, and how it is asked, interrupted and ended."""

import asyncio
import json
import math
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from aepo_lightning.tools.jail.bubblewrap import Bubblewrap, Interpreter, build_command, readable_folders
from aepo_lightning.tools.jail.execution import Execution, ExitKind
from aepo_lightning.tools.jail.inside.config import ZygoteConfig
from aepo_lightning.tools.jail.inside.framing import FrameBuffer, pack_frame
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.settings import PoolSettings
from aepo_lightning.tools.jail.uids import UserLease

_CHUNK_BYTES = 1 << 18
_START_S = 120.0  # numpy and sympy from a cold disk on a loaded machine
_WATCHDOG_S = 3.0
_END_S = 5.0
_MAX_FILE_MB = 32
_Frame = tuple[dict[str, Any], bytes]


class WorkerError(Exception):
    """A worker that cannot start, or that has gone."""


class _GoneError(WorkerError):
    """The other end of the socket is closed."""


class Worker:
    """A jail with a warm zygote in it. Start it from a thread that lives as long as the worker shall live.

    The kernel ends bubblewrap with the *thread* that started it, not only with the process.

    Args:
        bubblewrap: The program.
        interpreter: What to run inside.
        settings: Limits and packages.

    Raises:
        WorkerError: If it does not come up; the message holds what bubblewrap or Python said.
    """

    def __init__(self, bubblewrap: Bubblewrap, interpreter: Interpreter, settings: PoolSettings) -> None:
        self._settings = settings
        self.interpreter = interpreter
        self._received = FrameBuffer()
        self._init: int | None = None
        self.facts: dict[str, Any] = {}
        self.is_usable = True
        self._is_interrupted = False
        self._lock = threading.Lock()
        self._is_running = self._is_closed = False
        self._user = UserLease() if os.geteuid() == 0 else None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._control, theirs = socket.socketpair()
        info, their_info = os.pipe()
        # Closed with the process itself, while every fork of it keeps the socket open.
        owner = os.pidfd_open(os.getpid())
        try:
            self._process = subprocess.Popen(
                build_command(
                    bubblewrap,
                    interpreter,
                    is_root=self._user is not None,
                    descriptors=(theirs.fileno(), their_info),
                    work_mb=settings.work_mb,
                ),
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=(theirs.fileno(), their_info, owner),
                process_group=0,
            )
        except BaseException:
            self._free(info)
            raise
        finally:
            theirs.close()
            os.close(their_info)
            os.close(owner)
        try:
            self._greet(info, owner)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(info)

    def _free(self, info: int) -> None:
        """Give back what is held for a process that never came to be."""
        os.close(info)
        self._control.close()
        self._complaints.close()
        if self._user:
            self._user.close()

    @property
    def pid(self) -> int:
        """Process number of bubblewrap on the host."""
        return self._process.pid

    async def run(self, job: Job) -> Execution:
        """Run code. Afterwards `is_usable` says whether the worker can take the next call.

        Cancelling this stops the code at once; the answer is then still to be collected by `recover`.

        Args:
            job: What to run.

        Returns:
            How it went; `LOST` if the worker did not answer.
        """
        loop = asyncio.get_running_loop()
        self.is_usable = False
        with self._lock:
            if self._is_closed:
                return _lost()
            self._is_running = True
        try:
            async with asyncio.timeout(job.timeout_s + _WATCHDOG_S):
                await loop.sock_sendall(self._control, job.pack())
                header, body = await self._next_frame(loop)
        except asyncio.CancelledError:
            self.interrupt()
            raise
        except (TimeoutError, OSError, ValueError, WorkerError):
            return _lost()
        finally:
            self._stop_running()
        self.is_usable = bool(header.get("is_clean"))
        return _read_answer(header, body)

    def run_blocking(self, job: Job) -> Execution:
        """Like `run`, for a thread.

        Raises:
            WorkerError: If the worker did not answer.
        """
        self._send(job.pack())
        header, body = self._receive(job.timeout_s + _WATCHDOG_S)
        self.is_usable = bool(header.get("is_clean"))
        return _read_answer(header, body)

    def interrupt(self) -> None:
        """Ask the zygote to stop the code that runs."""
        self._is_interrupted = True
        with suppress(OSError):
            self._control.send(pack_frame({"cancel": True}))

    def recover(self) -> None:
        """Collect the answer of an interrupted call. Afterwards `is_usable` says whether the worker is sound."""
        if not self._is_interrupted:
            return
        self._is_interrupted = False
        try:
            header, _ = self._receive(_WATCHDOG_S)
        except WorkerError:
            return
        self.is_usable = bool(header.get("is_clean"))

    def close(self) -> None:
        """End the worker and everything in it, and wait until it is gone."""
        if self._init is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            select.select([self._init], [], [], _END_S)
            os.close(self._init)
            self._init = None
        else:
            self._process.kill()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()
        with self._lock:
            self._is_closed = True
            if not self._is_running:
                self._control.close()
        if self._user:
            self._user.close()

    def _stop_running(self) -> None:
        """A socket that an event loop watches must not be closed by others: the loop would never hear of it."""
        with self._lock:
            self._is_running = False
            if self._is_closed:
                self._control.close()

    def _greet(self, info: int, owner: int) -> None:
        settings, interpreter = self._settings, self.interpreter
        config = ZygoteConfig(
            uid=self._user.uid if self._user else None,
            owner=owner,
            host_pid_namespace=os.readlink("/proc/self/ns/pid"),
            site_paths=[interpreter.inside(path) for path in interpreter.site_paths],
            preload=list(settings.preload),
            readable=readable_folders(interpreter),
            memory_mb=settings.memory_mb,
            max_output_bytes=settings.max_output_bytes,
            max_files=settings.max_files,
            max_file_mb=min(_MAX_FILE_MB, settings.work_mb),
            demote_after_s=settings.demote_after_s,
        )
        self._send(pack_frame(asdict(config)))
        self.facts, _ = self._receive(_START_S)
        if "refused" in self.facts:
            raise WorkerError(f"the sandbox refuses to start: {self.facts['refused']}")
        self._init = os.pidfd_open(json.loads(os.read(info, 1 << 16))["child-pid"])
        self._control.setblocking(False)

    async def _next_frame(self, loop: asyncio.AbstractEventLoop) -> _Frame:
        arrived: asyncio.Future[_Frame] = loop.create_future()

        def read() -> None:
            try:
                frame = self._take_chunk()
            except (OSError, ValueError, WorkerError) as error:
                frame = None
                if not arrived.done():
                    arrived.set_exception(error)
            if frame and not arrived.done():
                arrived.set_result(frame)

        loop.add_reader(self._control, read)
        try:
            return await arrived
        finally:
            loop.remove_reader(self._control)

    def _take_chunk(self) -> _Frame | None:
        try:
            chunk = self._control.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise _GoneError
        self._received.feed(chunk)
        return self._received.next_frame()

    def _send(self, data: bytes) -> None:
        self._control.settimeout(_WATCHDOG_S)
        try:
            self._control.sendall(data)
        except OSError:
            raise WorkerError(self._last_words()) from None
        finally:
            self._control.setblocking(False)

    def _receive(self, patience_s: float) -> _Frame:
        deadline = time.monotonic() + patience_s
        try:
            while (frame := self._received.next_frame() or self._take_chunk()) is None:
                if not select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise WorkerError(f"the sandbox did not answer within {patience_s:g} s")
        except _GoneError:
            raise WorkerError(self._last_words()) from None
        except (OSError, ValueError) as error:
            raise WorkerError(f"the sandbox cannot be understood: {error}") from None
        return frame

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._complaints.seek(0)
        text = self._complaints.read(1 << 12).decode("utf-8", "replace").strip()
        return text.splitlines()[-1] if text else f"the sandbox ended with exit code {self._process.poll()}"


def _read_answer(header: dict[str, Any], body: bytes) -> Execution:
    num_stdout, failure = int(header["num_stdout"]), header.get("failure")
    return Execution(
        stdout=body[:num_stdout].decode("utf-8", "replace"),
        stderr=f"The sandbox could not be closed: {failure}"
        if failure
        else body[num_stdout:].decode("utf-8", "replace"),
        exit=ExitKind(header["exit"]),
        exit_code=int(header["code"]),
        duration_s=float(header["duration_s"]),
        queue_s=0.0,
    )


def _lost() -> Execution:
    return Execution(
        stdout="",
        stderr="The sandbox was ended from outside while the code ran.",
        exit=ExitKind.LOST,
        exit_code=None,
        duration_s=math.nan,
        queue_s=0.0,
    )
