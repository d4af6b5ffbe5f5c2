"""The local back end: a set of jailed workers, started, repaired and ended off the event loop."""

import asyncio
import logging
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from aepo_lightning.errors import ConfigError, boundary
from aepo_lightning.tools.jail.bubblewrap import Bubblewrap, Interpreter, find_bubblewrap, find_interpreter
from aepo_lightning.tools.jail.execution import Execution, Isolation, SandboxUnavailableError
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.self_test import self_test
from aepo_lightning.tools.jail.settings import PoolSettings
from aepo_lightning.tools.jail.slots import SlotQueue
from aepo_lightning.tools.jail.worker import Worker, WorkerError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Jail:
    """Warm workers behind bubblewrap. Opening blocks until the first one has passed its self-test.

    Workers are started by threads of their own that live until `close`: the kernel ends bubblewrap with the thread
    that started it, and event loops come and go. A worker that is lost is replaced; a start that fails is tried again
    after growing pauses for as long as the jail is open. While there is no worker at all, calls are refused with
    `PoolUnavailableError`.

    Args:
        settings: Limits and sizes.
        wait: Pauses between two starts for so many seconds, or until its event is set.

    Raises:
        SandboxUnavailableError: If bubblewrap is missing, cannot start, or does not keep code in.
    """

    def __init__(
        self, settings: PoolSettings, wait: Callable[[threading.Event, float], object] = threading.Event.wait
    ) -> None:
        self._bubblewrap, self._interpreter = _find_parts(settings)
        self._wait = wait
        self._settings = settings
        self._queue = SlotQueue[Worker](max_active=settings.active, max_waiting=settings.max_waiting)
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._ready: set[Worker] = set()
        self._closing = threading.Event()
        self._has_recovered = threading.Event()
        """Cleared by a start that failed, set by one that did not: then nobody pauses any longer."""
        self.num_attacks = 0
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="python-pool")
        try:
            first = self._threads.submit(self._start_worker).result()
        except (WorkerError, OSError, ConfigError) as error:
            self.close()
            raise SandboxUnavailableError(f"bubblewrap: {error}") from None
        except BaseException:
            self.close()
            raise
        self.isolation = self._describe(first)
        self._queue.add(first)
        for _ in range(settings.workers - 1):
            self._threads.submit(self._replace_worker)

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers on the host."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    @property
    def num_ready(self) -> int:
        """Workers that have passed their self-test."""
        return len(self._ready)

    async def run(self, job: Job) -> Execution:
        """Run code in the next free worker."""
        asked = time.perf_counter()
        lease = await self._queue.acquire()
        queue_s = time.perf_counter() - asked
        timer = asyncio.get_running_loop().call_later(self._settings.demote_after_s, lease.demote)
        try:
            execution = await lease.worker.run(job)
        finally:
            timer.cancel()
            is_usable = lease.worker.is_usable  # read once: when it is released, its next user changes it
            self._queue.release(lease, is_usable=is_usable)
            if not is_usable:
                self._submit_repair(lease.worker)
        return replace(execution, queue_s=queue_s)

    def close(self) -> None:
        """End all workers and wait until they are gone."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            self._has_recovered.set()
            workers = list(self._workers)
        self._queue.fail(ConfigError("The Python pool must be open, but it was closed. Make a new one."))
        for worker in workers:
            self._end(worker)
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in list(self._workers):  # one that was just starting
            self._end(worker)

    def _submit_repair(self, worker: Worker) -> None:
        with suppress(RuntimeError):  # closed in the meantime, and the worker with it
            self._threads.submit(self._repair, worker)

    def _repair(self, worker: Worker) -> None:
        with boundary(lambda error: logger.warning("A Python worker could not be recovered: %r", error)):
            worker.recover()
        if worker.is_usable:
            self._queue.add(worker)
        else:
            self._end(worker)
            self._replace_worker()

    def _replace_worker(self) -> None:
        """Start a worker, again after growing pauses until it is there or the jail is closed."""
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            failures: list[Exception] = []
            with boundary(failures.append):
                self._queue.add(self._start_worker())
                self._has_recovered.set()
                return
            self._has_recovered.clear()
            if self._closing.is_set():
                return
            self._note_failure(failures[0], pause_s)
            self._wait(self._has_recovered, pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._find_parts_again()

    def _note_failure(self, error: Exception, pause_s: float) -> None:
        reason = str(error) or type(error).__name__
        with self._lock:
            num_left = len(self._ready)
        level = logging.WARNING if pause_s < _LONGEST_PAUSE_S else logging.DEBUG  # said often enough by then
        logger.log(
            level, "A Python worker cannot be started (%d left, next try in %g s): %s", num_left, pause_s, reason
        )
        if not num_left:
            self._queue.suspend(f"The Python sandbox cannot be started at the moment: {reason}")

    def _find_parts_again(self) -> None:
        """Look for bubblewrap and Python anew: an upgrade may have moved them. What is not there fails at the start."""
        with suppress(SandboxUnavailableError):
            self._bubblewrap, self._interpreter = _find_parts(self._settings)

    def _start_worker(self) -> Worker:
        worker = Worker(self._bubblewrap, self._interpreter, self._settings)
        with self._lock:
            self._workers.add(worker)
            is_closed = self._closing.is_set()
        try:
            if is_closed:
                raise WorkerError("the pool was closed")
            self.num_attacks = self_test(worker, self._settings)
            self._ready.add(worker)
        except BaseException:
            self._end(worker)
            raise
        return worker

    def _end(self, worker: Worker) -> None:
        with self._lock:
            is_known = worker in self._workers
            self._workers.discard(worker)
            self._ready.discard(worker)
        if is_known:
            worker.close()

    def _describe(self, worker: Worker) -> Isolation:
        caller = "root, a user for each worker" if os.geteuid() == 0 else "a user namespace"
        landlock = worker.facts["landlock"]
        walls = [f"{self._bubblewrap.version} ({caller})", f"seccomp ({platform.machine()})"]
        walls.append(f"Landlock {landlock}" if landlock else "no Landlock in this kernel")
        packages = ", ".join(worker.facts["preloaded"]) or "nothing"
        return Isolation(
            level="jail",
            description=f"{'; '.join(walls)}; {self.num_attacks} attacks tried and withstood; "
            f"{self._settings.workers} workers with {packages} preloaded",
        )


def _find_parts(settings: PoolSettings) -> tuple[Bubblewrap, Interpreter]:
    try:
        bubblewrap, interpreter = find_bubblewrap(), find_interpreter(settings.preload)
    except (ConfigError, OSError, subprocess.TimeoutExpired) as error:
        raise SandboxUnavailableError(f"bubblewrap: {error}") from None
    if bubblewrap is None:
        raise SandboxUnavailableError("bubblewrap is not installed")
    return bubblewrap, interpreter
