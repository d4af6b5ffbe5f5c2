"""Verdicts that a judge gave, kept so that no claim is judged twice by the same judge.

One SQLite file, shared by any number of processes of a machine, in write-ahead mode: a killed process loses nothing
that it wrote, and readers do not wait. The verdict that was written first stays.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from aepo_lightning.event_loop import call_in_thread
from aepo_lightning.rewards.judge.reply import Judgement
from aepo_lightning.rewards.judge.template import Ruling

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, ruling TEXT NOT NULL, reason TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
"""
_FORMAT = 1
_WAIT_S = 10.0
"""For a lock of another process."""


class VerdictStore:
    """Keeps verdicts in memory and, if there is a path, in a file.

    A file that cannot be opened, read or written is no reason to stop: the judge is asked as if nothing were kept, and
    the log says so once.

    Args:
        path: The file, on a local disk. Its folder is made if it is missing. None keeps verdicts in memory alone.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file = None if path is None else Path(path)
        self._known: dict[str, Judgement] = {}
        self._lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._has_warned = False

    def get(self, key: str) -> Judgement | None:
        """Return the verdict under a key, or None if there is none that can be read."""
        if (known := self._known.get(key)) is not None or self._file is None:
            return known
        with self._lock, self._forgiving():
            self._follow_fork()
            if self._reader is None and self._file.exists():
                self._reader = _opened_for_reading(self._file)
            if self._reader is not None and (found := _select(self._reader, key)) is not None:
                self._known[key] = found
        return self._known.get(key)

    async def put(self, key: str, model: str, judgement: Judgement) -> Judgement:
        """Keep a verdict.

        Args:
            key: Of the claim and the judge.
            model: Who gave it, for those who look into the file.
            judgement: What was given.

        Returns:
            The verdict that is kept: an earlier one, if another process was faster.
        """
        if self._file is not None:
            judgement = await call_in_thread(lambda: self._written(key, model, judgement), "aepo-judge")
        return self._known.setdefault(key, judgement)

    def _written(self, key: str, model: str, judgement: Judgement) -> Judgement:
        assert self._file is not None, "only called with a file"
        values = (key, model, str(judgement.ruling), judgement.reason, time.time())
        kept = [judgement]
        with self._forgiving():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(_opened_for_writing(self._file)) as connection:
                with connection:
                    connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", values)
                if (found := _select(connection, key)) is not None:
                    kept[0] = found
        return kept[0]

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            if not self._has_warned:
                logger.warning(
                    "Verdicts of the judge cannot be kept in %s or read from it, so claims may be judged again: %s",
                    self._file,
                    error,
                )
            self._has_warned = True

    def _follow_fork(self) -> None:
        """Open the file anew in a forked child: connections must not cross."""
        if self._pid != os.getpid():
            self._pid, self._reader = os.getpid(), None


def _opened_for_writing(path: Path) -> sqlite3.Connection:
    """Open a file, and make its table if it is new.

    Raises:
        sqlite3.Error: If it is no database, or stays locked.
        ValueError: If its format is another one.
    """
    connection = sqlite3.connect(path, timeout=_WAIT_S)
    try:
        if not _version(connection):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_FORMAT};")
        connection.execute("PRAGMA synchronous = NORMAL")
    except (sqlite3.Error, ValueError):
        connection.close()
        raise
    return connection


def _opened_for_reading(path: Path) -> sqlite3.Connection | None:
    """Open a file that is there, without writing to it or waiting for a lock.

    Returns:
        None if it holds no verdicts yet, or is locked at the moment, as while it is made.

    Raises:
        sqlite3.Error: If it is no database.
        ValueError: If its format is another one.
    """
    connection = sqlite3.connect(path, timeout=0.0, check_same_thread=False)
    try:
        if _version(connection):
            return connection
    except (sqlite3.Error, ValueError) as error:
        if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            connection.close()
            raise
    connection.close()
    return None


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, _FORMAT):
        raise ValueError(f"it must be a store of format {_FORMAT}, but has {version}. Use another file.")
    return int(version)


def _select(connection: sqlite3.Connection, key: str) -> Judgement | None:
    """Return the verdict under a key.

    Raises:
        ValueError: If its ruling is none.
    """
    found = connection.execute("SELECT ruling, reason FROM verdicts WHERE key = ?", (key,)).fetchone()
    return None if found is None else Judgement(ruling=Ruling(found[0]), reason=str(found[1]))
