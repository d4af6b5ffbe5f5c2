"""A lock on the folder of a run: one run at a time writes there.

The first process of a job holds it from the moment that the folder is chosen. The kernel lets go of it when the process
ends, however it ends. Between machines it is as good as the file system: NFS passes locks to its server; one that keeps
no locks at all is named in the log, and what the file says of its last holder is believed instead.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK = "run.lock"
"""The file in the folder of a run; it names the process that writes there."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: WeakSet["RunLock"] = WeakSet()


class RunLock:
    """Held until `release`, or until the process ends."""

    def __init__(self, folder: Path, key: str = "run_dir") -> None:
        """Take the lock of a folder.

        Args:
            folder: Of the run. It exists.
            key: With which the user chooses the folder, for messages.

        Raises:
            ConfigError: If another run holds it; its process, host and start are named.
            OSError: If the file cannot be written.
        """
        self._path, self._key = folder / LOCK, key
        self._file: int | None = None
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        _held.add(self)
        try:
            self._take(folder)
        except BaseException:
            self._close()
            raise

    def _take(self, folder: Path) -> None:
        assert self._file is not None, "opened by the caller"
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(folder, _read_holder(self._path)) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            if _lives_here(holder := _read_holder(self._path)):
                raise self._in_use(folder, holder) from None
            logger.warning(
                "The file system of %s keeps no locks (%s): a second run that writes there goes unnoticed unless it is "
                "on this machine.",
                folder,
                error.strerror,
            )
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(holder).encode(), 0)

    def _in_use(self, folder: Path, holder: dict[str, Any]) -> ConfigError:
        who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
        since = f" since {holder['since']}" if "since" in holder else ""
        return ConfigError(
            f"`{self._key}` must be a folder that no other run writes to, but {folder} is in use by {who}{since}. Wait "
            f"for its end or end it, or choose another folder with {self._key}=..."
        )

    def release(self) -> None:
        """Let the next run have the folder. A second call does nothing."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __del__(self) -> None:
        """Do not hold it for longer than anything refers to it."""
        self._close()


def _forget_in_child() -> None:
    """Let a forked worker that outlives the run not hold its folder."""
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_forget_in_child)


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives_here(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's process
    return True
