"""Answers of tools in one SQLite file, shared by any number of processes of a machine."""

import logging
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tools.search.official_results import load_search_cache

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, tool TEXT NOT NULL, status TEXT NOT NULL, body BLOB NOT NULL,
    created REAL NOT NULL, expires REAL, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON answers (created);
"""
_FORMAT = 1
_BUSY_TIMEOUT_S = 30.0
_BATCH = 512
_TRIM_EVERY = 1000
_SLACK = 0.9
_NOTHING_FOUND = "No search results found."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    key: str
    tool: str
    answer: ToolResult
    expires: float | None

    def values(self, now: float) -> tuple[str, str, str, bytes, float, float | None, int]:
        body = zlib.compress(self.answer.text.encode("utf-8", "surrogatepass"), 1)
        size = len(body) + len(self.key) + len(self.tool)
        return (self.key, self.tool, str(self.answer.status), body, now, self.expires, size)


_Queue = queue.SimpleQueue[_Row | Future[None] | None]


class SQLiteCache:
    """Keeps answers in a file, in write-ahead mode: readers never wait, a killed writer loses nothing that was written.

    Answers are written by a thread of this process, in batches, so that no event loop waits for a disk or for another
    process. Until then they are read from memory. Connections are opened at first use and never shared with a fork.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_mb: float = 1024.0,
        is_read_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the settings.

        Args:
            path: The file. Its folder is made if it is missing. It must be on a local disk.
            max_mb: Size of all answers, compressed. Beyond it the oldest go.
            is_read_only: Answer from the file, but keep nothing new.
            clock: Returns seconds since the epoch.

        Raises:
            ConfigError: If `max_mb` is not positive.
        """
        if not max_mb > 0:
            raise ConfigError(f"`max_mb` must be positive, but got {max_mb}. Leave the cache out to keep nothing.")
        self._path = Path(path)
        self._max_bytes = int(max_mb * 2**20)
        self._is_read_only = is_read_only
        self._clock = clock
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: threading.Thread | None = None
        self._rows: _Queue = queue.SimpleQueue()
        self._unwritten: dict[str, _Row] = {}
        self._failure: Exception | None = None
        self._has_warned = False

    def get(self, key: str) -> ToolResult | None:
        """Return the answer under a key, or None if there is none or its time is up.

        Raises:
            DataError: If the file is not a cache.
        """
        with self._lock:
            self._follow_fork()
            row = self._unwritten.get(key)
            if row is not None:
                return row.answer if row.expires is None or row.expires > self._clock() else None
            if self._reader is None:
                if self._is_read_only and not self._path.exists():
                    return None
                self._reader = self._open()
            return self._read(self._reader, key)

    def _read(self, reader: sqlite3.Connection, key: str) -> ToolResult | None:
        try:
            found = reader.execute("SELECT status, body, expires FROM answers WHERE key = ?", (key,)).fetchone()
            if found is None or (found[2] is not None and found[2] <= self._clock()):
                return None
            text = zlib.decompress(found[1]).decode("utf-8", "surrogatepass")
            return ToolResult(status=ToolStatus(found[0]), text=text)
        except (sqlite3.Error, zlib.error, ValueError, TypeError) as error:
            # The tool is asked again, as if there were no answer: a spoilt file must not stop a run.
            if not self._has_warned:
                logger.warning("%s has answers that cannot be read, so tools are asked again: %s", self._path, error)
            self._has_warned = True
            return None

    def put(self, key: str, tool: str, answer: ToolResult, ttl_s: float | None) -> None:
        """Keep an answer. It is written soon, and can be read at once."""
        if self._is_read_only:
            return
        expires = None if ttl_s is None else self._clock() + ttl_s
        row = _Row(key=key, tool=tool, answer=answer, expires=expires)
        with self._lock:
            self._follow_fork()
            if self._failure is not None:
                return
            self._unwritten[key] = row
            if self._writer is None:
                self._writer = threading.Thread(
                    target=self._write_all, args=(self._rows,), name="aepo-tool-cache", daemon=True
                )
                self._writer.start()
            self._rows.put(row)

    def flush(self) -> None:
        """Return when everything that was kept before is in the file."""
        done: Future[None] = Future()
        with self._lock:
            self._follow_fork()
            if self._writer is None:
                return
            self._rows.put(done)
        done.result()

    def forget(self, tool: str) -> int:
        """Remove every answer of a tool; return how many there were."""
        self.flush()
        connection = self._open()
        with connection:
            num_removed = connection.execute("DELETE FROM answers WHERE tool = ?", (tool,)).rowcount
        connection.close()
        return num_removed

    def counts(self) -> dict[str, int]:
        """Return how many answers of each tool are kept."""
        self.flush()
        connection = self._open()
        found = dict(connection.execute("SELECT tool, COUNT(*) FROM answers GROUP BY tool ORDER BY tool").fetchall())
        connection.close()
        return found

    def close(self) -> None:
        """Write what has not been written and close the file. A later call opens it again."""
        with self._lock:
            self._follow_fork()
            writer, self._writer = self._writer, None
            rows, self._rows = self._rows, queue.SimpleQueue()
        if writer is not None:
            rows.put(None)
            writer.join()
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _follow_fork(self) -> None:
        """Start afresh in a forked child: neither connections nor threads may cross."""
        if self._pid != os.getpid():
            self._pid, self._reader, self._writer = os.getpid(), None, None
            self._rows, self._unwritten = queue.SimpleQueue(), {}

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing; a power cut may cost the last answers, never the file.
            connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _FORMAT):
                raise DataError(
                    f"{self._path} must be a cache of format {_FORMAT}, but has {version}. Use another file."
                )
            if not version:
                connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_FORMAT};")
        except (sqlite3.DatabaseError, OSError) as error:
            raise DataError(f"{self._path} must be a cache of tool answers, but: {error}. Use another file.") from None
        return connection

    def _write_all(self, rows: _Queue) -> None:
        """Write rows until told to stop: what has gathered meanwhile goes into one transaction."""
        connection: sqlite3.Connection | None = None
        num_written = num_bytes = 0
        stop = False
        while not stop:
            batch, waiting, stop = _next_batch(rows)
            try:
                connection = connection or self._open()
                if batch:
                    num_bytes += self._write(connection, batch)
                    num_written += len(batch)
                is_much = num_written >= _TRIM_EVERY or num_bytes >= (1 - _SLACK) * self._max_bytes
                if is_much or (stop and num_written):
                    num_written = num_bytes = 0
                    self._trim(connection)
            except (sqlite3.Error, DataError) as error:
                # A cache that cannot be written must not stop a run: from here on nothing is kept.
                logger.warning("Answers of tools are no longer kept in %s: %s", self._path, error)
                self._failure = error
            with self._lock:
                for row in batch:
                    if self._unwritten.get(row.key) is row:
                        del self._unwritten[row.key]
            for done in waiting:
                done.set_result(None)
        if connection is not None:
            connection.close()

    def _write(self, connection: sqlite3.Connection, batch: Iterable[_Row]) -> int:
        """Write rows; return their size."""
        now = self._clock()
        values = [row.values(now) for row in batch]
        with connection:
            connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return sum(size for *_, size in values)

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Remove what has expired and, beyond the size bound, the oldest."""
        with connection:
            connection.execute("DELETE FROM answers WHERE expires <= ?", (self._clock(),))
            (total,) = connection.execute("SELECT COALESCE(SUM(size), 0) FROM answers").fetchone()
            excess = total - int(_SLACK * self._max_bytes) if total > self._max_bytes else 0
            oldest = connection.execute("SELECT key, size FROM answers ORDER BY created, key") if excess else ()
            doomed = []
            for key, size in oldest:
                if excess <= 0:
                    break
                doomed.append((key,))
                excess -= size
            connection.executemany("DELETE FROM answers WHERE key = ?", doomed)


def _next_batch(rows: _Queue) -> tuple[list[_Row], list[Future[None]], bool]:
    batch: list[_Row] = []
    waiting: list[Future[None]] = []
    item = rows.get()
    while True:
        if item is None:
            return batch, waiting, True
        if isinstance(item, _Row):
            batch.append(item)
        else:
            waiting.append(item)
        if len(batch) >= _BATCH:
            return batch, waiting, False
        try:
            item = rows.get_nowait()
        except queue.Empty:
            return batch, waiting, False


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
