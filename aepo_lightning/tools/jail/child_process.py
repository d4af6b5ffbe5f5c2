"""One child process for model-written work: capped output, no threads, nothing left behind."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

_CHUNK_BYTES = 1 << 16
_GRACE_S = 1.0


@dataclass(eq=False)
class _Pipe:
    """What came out of one pipe so far."""

    stream: IO[bytes]
    data: bytearray = field(default_factory=bytearray)
    is_flooded: bool = False
    is_open: bool = True


class ChildProcess:
    """A process in a session of its own with an empty environment, whose output is read by the running event loop.

    `asyncio.create_subprocess_exec` is not used: on Python 3.11 its default child watcher starts a thread for each
    process. Here the end of both pipes says that the process is gone.

    The process is asked to stop by SIGTERM first, so that one that supervises others can take them along; what is left
    of its process group is killed in any case.

    Args:
        command: Program and arguments.
        folder: Working directory.
        stdin: An open file that the process reads as its standard input.
        max_output_bytes: Kept of each of the two pipes. One byte more counts as a flood.
        kept: Further descriptors that the process has, under their numbers.

    Raises:
        OSError: If the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: str,
        stdin: IO[bytes],
        max_output_bytes: int,
        kept: Sequence[int] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_output_bytes = max_output_bytes
        self._has_settled, self._has_ended = asyncio.Event(), asyncio.Event()
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=kept,
        )
        assert self._process.stdout is not None, "stdout was asked for"
        assert self._process.stderr is not None, "stderr was asked for"
        self._stdout, self._stderr = _Pipe(self._process.stdout), _Pipe(self._process.stderr)
        for pipe in (self._stdout, self._stderr):
            os.set_blocking(pipe.stream.fileno(), False)
            self._loop.add_reader(pipe.stream.fileno(), self._read, pipe)

    @property
    def stdout(self) -> bytes:
        """What was written to standard output, up to the cap."""
        return bytes(self._stdout.data)

    @property
    def stderr(self) -> bytes:
        """What was written to standard error, up to the cap."""
        return bytes(self._stderr.data)

    @property
    def is_stdout_flooded(self) -> bool:
        """Whether standard output passed the cap."""
        return self._stdout.is_flooded

    @property
    def is_stderr_flooded(self) -> bool:
        """Whether standard error passed the cap."""
        return self._stderr.is_flooded

    @property
    def exit_code(self) -> int | None:
        """Exit code, minus the signal number if a signal ended the process, or None before `close`."""
        return self._process.returncode

    async def wait(self) -> None:
        """Return when the process has closed both pipes or flooded one of them."""
        await self._has_settled.wait()

    async def close(self) -> None:
        """End the process and its process group if they still run, reap it, and close the pipes."""
        try:
            if not self._has_ended.is_set():
                self._process.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GRACE_S):
                        await self._has_ended.wait()
        finally:
            # The group goes before the process is reaped: until then its number cannot belong to anybody else.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._stdout, self._stderr):
                self._finish(pipe)

    def _read(self, pipe: _Pipe) -> None:
        try:
            chunk = os.read(pipe.stream.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._finish(pipe)
            return
        room = self._max_output_bytes - len(pipe.data)
        pipe.data += chunk[:room]
        if len(chunk) > room:
            pipe.is_flooded = True
            self._has_settled.set()

    def _finish(self, pipe: _Pipe) -> None:
        if pipe.is_open:
            pipe.is_open = False
            self._loop.remove_reader(pipe.stream.fileno())
            pipe.stream.close()
        if not (self._stdout.is_open or self._stderr.is_open):
            self._has_ended.set()
            self._has_settled.set()
