"""The SQLite file of a cache: how it is opened for reading and writing, and what is done in it.

In write-ahead mode, so that readers do not wait for writers and a killed writer loses nothing that was written.
"""

import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.errors import DataError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, tool TEXT NOT NULL, status TEXT NOT NULL, body BLOB NOT NULL,
    created REAL NOT NULL, expires REAL, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON answers (created);
"""
_FORMAT = 1
_WRITER_WAITS_S = 10.0
"""For a lock of another process."""
_SLACK = 0.9
_MAX_TEXT_BYTES = 64 << 20
READ_ERRORS = (sqlite3.Error, zlib.error, ValueError, TypeError)
"""What an answer that is spoilt raises when it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An answer that is to be written."""

    key: str
    tool: str
    answer: ToolResult
    expires: float | None

    def values(self, now: float) -> tuple[str, str, str, bytes, float, float | None, int]:
        """Return the columns."""
        body = zlib.compress(self.answer.text.encode("utf-8", "surrogatepass"), 1)
        size = len(body) + len(self.key) + len(self.tool)
        return (self.key, self.tool, str(self.answer.status), body, now, self.expires, size)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open a file, made if it is missing, with its folder.

    Raises:
        DataError: If it is not a cache of this format, or cannot be opened, or stays locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_WRITER_WAITS_S, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; a power cut may cost the last answers, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not _version(connection, path):
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_FORMAT};")
    except (sqlite3.Error, OSError) as error:
        raise DataError(f"{path} must be a cache of tool answers, but: {error}. Use another file.") from None
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection | None:
    """Open a file that is there, without writing to it or waiting for a lock.

    Returns:
        None if it holds no answers yet, or is locked at the moment, as while it is made.

    Raises:
        DataError: If it is not a cache of this format, or cannot be opened.
    """
    try:
        if not path.exists():
            return None
        connection = sqlite3.connect(path, timeout=0.0, check_same_thread=False)
        if _version(connection, path):
            return connection
        connection.close()
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return None
        raise DataError(f"{path} must be a cache of tool answers, but: {error}. Use another file.") from None
    return None


def _version(connection: sqlite3.Connection, path: Path) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, _FORMAT):
        connection.close()
        raise DataError(f"{path} must be a cache of format {_FORMAT}, but has {version}. Use another file.")
    return int(version)


def read_answer(connection: sqlite3.Connection, key: str, now: float) -> ToolResult | None:
    """Return the answer under a key, or None if there is none or its time is up.

    Raises:
        Exception: One of `READ_ERRORS`, if the file or the answer is spoilt.
    """
    found = connection.execute("SELECT status, body, expires FROM answers WHERE key = ?", (key,)).fetchone()
    if found is None or (found[2] is not None and found[2] <= now):
        return None
    decompressor = zlib.decompressobj()
    body = decompressor.decompress(found[1], _MAX_TEXT_BYTES)
    if not decompressor.eof:
        raise ValueError(f"the answer is cut off, or longer than {_MAX_TEXT_BYTES} bytes")
    return ToolResult(status=ToolStatus(found[0]), text=body.decode("utf-8", "surrogatepass"))


def write_rows(connection: sqlite3.Connection, rows: Iterable[Row], now: float) -> int:
    """Write answers in one transaction; return their size."""
    values = [row.values(now) for row in rows]
    with connection:
        connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return sum(size for *_, size in values)


def trim(connection: sqlite3.Connection, max_bytes: int, now: float) -> None:
    """Remove what has expired and, beyond the size bound, the oldest."""
    with connection:
        connection.execute("DELETE FROM answers WHERE expires <= ?", (now,))
        (total,) = connection.execute("SELECT COALESCE(SUM(size), 0) FROM answers").fetchone()
        excess = total - int(_SLACK * max_bytes) if total > max_bytes else 0
        oldest = connection.execute("SELECT key, size FROM answers ORDER BY created, key") if excess else ()
        doomed = []
        for key, size in oldest:
            if excess <= 0:
                break
            doomed.append((key,))
            excess -= size
        connection.executemany("DELETE FROM answers WHERE key = ?", doomed)
