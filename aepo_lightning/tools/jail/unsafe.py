"""Runs code as the user of this process, with limits on resources and no wall. Only for who asks for it in writing."""

import asyncio
import math
import sys
import tempfile
import time

from aepo_lightning.tools.jail.child_process import ChildProcess
from aepo_lightning.tools.jail.execution import Execution, ExitKind, Isolation
from aepo_lightning.tools.jail.inside.job import Job, name_exit
from aepo_lightning.tools.jail.program import CHILD_SOURCE, write_program
from aepo_lightning.tools.jail.settings import PoolSettings
from aepo_lightning.tools.jail.slots import SlotQueue


class UnsafeRunner:
    """A fresh interpreter for each call, without isolation.

    Args:
        settings: Limits.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._queue = SlotQueue[int](max_active=settings.workers, max_waiting=settings.max_waiting)
        for index in range(settings.workers):
            self._queue.add(index)

    @property
    def isolation(self) -> Isolation:
        """None: code can do what this process can do."""
        return Isolation(level="none", description="no isolation: code runs as the user of this process")

    @property
    def num_ready(self) -> int:
        """Calls that can run at a time."""
        return self._settings.workers

    async def run(self, job: Job) -> Execution:
        """Run code in a new process, which is gone when this returns; `LOST` if none can be started."""
        asked = time.perf_counter()
        lease = await self._queue.acquire()
        started = time.perf_counter()
        try:
            stdout, stderr, kind, code = await self._supervise(job)
        except OSError as error:
            stdout, stderr, kind, code = "", f"The code could not be started: {error}", ExitKind.LOST, None
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

    async def _supervise(self, job: Job) -> tuple[str, str, ExitKind, int | None]:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as source,
            tempfile.TemporaryFile() as report,
        ):
            source.write(write_program(job).encode())
            source.seek(0)
            limits = (self._settings.memory_mb, math.ceil(job.timeout_s) + 1, report.fileno())
            child = ChildProcess(
                [sys.executable, "-I", "-X", "utf8", "-c", CHILD_SOURCE, *map(str, limits)],
                folder=folder,
                stdin=source,
                max_output_bytes=self._settings.max_output_bytes,
                kept=[report.fileno()],
            )
            is_late = await _finish(child, job.timeout_s)
            report.seek(0)
            said = report.read().split()
        # A supervisor that was ended itself says nothing.
        code, has_no_memory = (int(said[0]), said[1] == b"1") if said else (child.exit_code or 0, False)
        kind = ExitKind(name_exit(code, has_no_memory))
        if is_late:
            kind = ExitKind.TIMEOUT
        if child.is_stdout_flooded or child.is_stderr_flooded:
            kind = ExitKind.OUTPUT
        stdout, stderr = (data.decode("utf-8", "replace") for data in (child.stdout, child.stderr))
        return stdout, stderr, kind, code

    def close(self) -> None:
        """Nothing stays open between calls."""


async def _finish(child: ChildProcess, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await child.wait()
    except TimeoutError:
        return True
    finally:
        await child.close()
    return False
