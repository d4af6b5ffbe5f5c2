"""The thread that writes a cache's answers into its file, in batches, so that no event loop waits for a disk."""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from aepo_lightning.errors import boundary
from aepo_lightning.tools.runtime.answer_file import Row, open_for_writing, trim, write_rows

logger = logging.getLogger(__name__)

_BATCH = 512
_TRIM_EVERY = 1000
_TRIM_SHARE = 0.1
_LOOK_S = 0.2
_Queue = queue.SimpleQueue[Row | Future[None] | None]


class AnswerWriter:
    """Writes rows until it is closed. A file that cannot be written is left alone for a while, then tried again.

    Args:
        path: The file.
        max_bytes: Size of all answers, compressed.
        retry_s: How long a file that failed is left alone. What comes meanwhile is not kept.
        clock: Returns seconds since the epoch.
        on_settled: Called with rows that are written, or will not be.
        on_failure: Called with what the file could not take.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        retry_s: float,
        clock: Callable[[], float],
        on_settled: Callable[[list[Row]], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._path, self._max_bytes, self._retry_s, self._clock = path, max_bytes, retry_s, clock
        self._on_settled, self._on_failure = on_settled, on_failure
        self._rows: _Queue = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._num_written = self._num_bytes = 0
        self._rests_until = 0.0
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="aepo-tool-cache", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether rows are still taken."""
        return self._thread.is_alive()

    def put(self, row: Row) -> None:
        """Have a row written soon."""
        self._rows.put(row)

    def flush(self) -> None:
        """Return when everything that was put before is written, or will not be."""
        done: Future[None] = Future()
        self._rows.put(done)
        self._wait(done)

    def close(self) -> None:
        """Write what was put before, and end."""
        self._rows.put(None)
        while self._thread.is_alive():
            self._thread.join(_LOOK_S)

    def _wait(self, done: "Future[None]") -> None:
        while self._thread.is_alive():
            try:
                return done.result(_LOOK_S)
            except TimeoutError:
                continue
        return None

    def _run(self) -> None:
        stop = False
        try:
            while not stop:
                batch, waiting, stop = _next_batch(self._rows)
                try:
                    with boundary(self._note):
                        self._write(batch, stop)
                finally:
                    self._on_settled(batch)
                    for done in waiting:
                        done.set_result(None)
        finally:
            self._disconnect()

    def _write(self, batch: list[Row], stop: bool) -> None:
        if time.monotonic() < self._rests_until:
            return
        self._connection = self._connection or open_for_writing(self._path)
        if batch:
            self._num_bytes += write_rows(self._connection, batch, self._clock())
            self._num_written += len(batch)
        is_much = self._num_written >= _TRIM_EVERY or self._num_bytes >= _TRIM_SHARE * self._max_bytes
        if is_much or (stop and self._num_written):
            self._num_written = self._num_bytes = 0
            trim(self._connection, self._max_bytes, self._clock())
        if self._is_failing and batch:
            self._is_failing = False
            logger.info("Answers of tools are kept in %s again.", self._path)

    def _note(self, error: Exception) -> None:
        """Go on without the file for a while."""
        self._on_failure(error)
        self._is_failing = True
        self._rests_until = time.monotonic() + self._retry_s
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with boundary(lambda error: logger.debug("%s could not be closed: %r", self._path, error)):
                connection.close()


def _next_batch(rows: _Queue) -> tuple[list[Row], list[Future[None]], bool]:
    batch: list[Row] = []
    waiting: list[Future[None]] = []
    item = rows.get()
    while True:
        if item is None:
            return batch, waiting, True
        if isinstance(item, Row):
            batch.append(item)
        else:
            waiting.append(item)
        if len(batch) >= _BATCH:
            return batch, waiting, False
        try:
            item = rows.get_nowait()
        except queue.Empty:
            return batch, waiting, False
