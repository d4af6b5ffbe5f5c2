"""Answers of tools in one SQLite file, shared by any number of processes of a machine."""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tools.runtime.answer_file import (
    READ_ERRORS,
    Row,
    open_for_reading,
    open_for_writing,
    read_answer,
)
from aepo_lightning.tools.runtime.answer_writer import AnswerWriter
from aepo_lightning.tools.search.official_results import load_search_cache

logger = logging.getLogger(__name__)

_NOTHING_FOUND = "No search results found."


class SQLiteCache:
    """Keeps answers in a file, in write-ahead mode: readers never wait, a killed writer loses nothing that was written.

    Answers are written by a thread of this process, in batches, so that no event loop waits for a disk or for another
    process. Until then they are read from memory. Connections are opened at first use and never shared with a fork.

    A file that cannot be opened, read or written, or that another process holds, is no reason to stop: tools are asked
    as if nothing were kept, the log says so once, and the file is tried again from time to time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_mb: float = 1024.0,
        is_read_only: bool = False,
        retry_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the settings.

        Args:
            path: The file. Its folder is made if it is missing. It must be on a local disk.
            max_mb: Size of all answers, compressed. Beyond it the oldest go.
            is_read_only: Answer from the file, but keep nothing new.
            retry_s: How long a file that failed is left alone.
            clock: Returns seconds since the epoch.

        Raises:
            ConfigError: If `max_mb` is not positive, or `retry_s` negative.
        """
        if not max_mb > 0:
            raise ConfigError(f"`max_mb` must be positive, but got {max_mb}. Leave the cache out to keep nothing.")
        if not retry_s >= 0:
            raise ConfigError(f"`retry_s` must not be negative, but got {retry_s}. Give seconds.")
        self._path = Path(path)
        self._max_bytes = int(max_mb * 2**20)
        self._is_read_only = is_read_only
        self._retry_s = retry_s
        self._clock = clock
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._reader_rests_until = 0.0
        self._writer: AnswerWriter | None = None
        self._unwritten: dict[str, Row] = {}
        self._has_warned = False

    def get(self, key: str) -> ToolResult | None:
        """Return the answer under a key, or None if there is none, its time is up, or the file cannot be read."""
        with self._lock:
            self._follow_fork()
            row = self._unwritten.get(key)
            if row is not None:
                return row.answer if row.expires is None or row.expires > self._clock() else None
            return self._read(key)

    def _read(self, key: str) -> ToolResult | None:
        if time.monotonic() < self._reader_rests_until:
            return None
        try:
            self._reader = self._reader or open_for_reading(self._path)
        except DataError as error:
            self._warn(error)
            self._reader_rests_until = time.monotonic() + self._retry_s
            return None
        try:
            return None if self._reader is None else read_answer(self._reader, key, self._clock())
        except READ_ERRORS as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        """Say so once: a disk may be full for days."""
        if not self._has_warned:
            logger.warning(
                "Answers of tools cannot be kept in %s or read from it, so tools are asked again; it is tried again "
                "every %g s: %s",
                self._path,
                self._retry_s,
                error,
            )
        self._has_warned = True

    def put(self, key: str, tool: str, answer: ToolResult, ttl_s: float | None) -> None:
        """Keep an answer. It is written soon, and can be read at once."""
        if self._is_read_only:
            return
        expires = None if ttl_s is None else self._clock() + ttl_s
        row = Row(key=key, tool=tool, answer=answer, expires=expires)
        with self._lock:
            self._follow_fork()
            if self._writer is None or not self._writer.is_alive:
                self._writer = AnswerWriter(
                    self._path,
                    max_bytes=self._max_bytes,
                    retry_s=self._retry_s,
                    clock=self._clock,
                    on_settled=self._settle,
                    on_failure=self._warn,
                )
            self._unwritten[key] = row
            self._writer.put(row)

    def _settle(self, rows: list[Row]) -> None:
        with self._lock:
            for row in rows:
                if self._unwritten.get(row.key) is row:
                    del self._unwritten[row.key]

    def flush(self) -> None:
        """Return when everything that was kept before is in the file, or cannot be brought there."""
        with self._lock:
            self._follow_fork()
            writer = self._writer
        if writer is not None:
            writer.flush()

    def forget(self, tool: str) -> int:
        """Remove every answer of a tool; return how many there were.

        Raises:
            DataError: If the file is not a cache.
        """
        self.flush()
        with closing(open_for_writing(self._path)) as connection, connection:
            return connection.execute("DELETE FROM answers WHERE tool = ?", (tool,)).rowcount

    def counts(self) -> dict[str, int]:
        """Return how many answers of each tool are kept.

        Raises:
            DataError: If the file is not a cache.
        """
        self.flush()
        with closing(open_for_writing(self._path)) as connection:
            rows = connection.execute("SELECT tool, COUNT(*) FROM answers GROUP BY tool ORDER BY tool").fetchall()
        return dict(rows)

    def close(self) -> None:
        """Write what has not been written and close the file. A later call opens it again."""
        with self._lock:
            self._follow_fork()
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _follow_fork(self) -> None:
        """Start afresh in a forked child: neither connections nor threads may cross."""
        if self._pid != os.getpid():
            self._pid, self._reader, self._writer, self._unwritten = os.getpid(), None, None, {}


def import_official_cache(path: str | Path, cache: SQLiteCache, key_of: Callable[[str], str], tool: str) -> int:
    """Copy the official search cache, one JSON object of results by query, into a cache.

    Args:
        path: The JSON file.
        cache: Where the answers go. They are kept for ever.
        key_of: The key of a query's call.
        tool: Name of the search tool.

    Returns:
        How many answers were copied. Empty ones and "nothing found" are left out.

    Raises:
        DataError: If the file is no such object.
    """
    results = load_search_cache(path)
    kept = {query: text for query, text in results.items() if text.strip() not in ("", _NOTHING_FOUND)}
    for query, text in kept.items():
        cache.put(key_of(query), tool, ToolResult(status=ToolStatus.OK, text=text), None)
    cache.flush()
    return len(kept)
