"""What a fork server has to load so that its workers can call a function."""

import os
import pickle
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle

from aepo_lightning.errors import boundary
from aepo_lightning.processes.errors import CannotSendError

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A module to import, or a function as bytes."""

    module: str = ""
    origin: str = ""
    """Which file that was when it was imported here: another one of its name is another program."""
    pickled: bytes = b""

    def settings(self) -> bytes:
        """Return what the server reads first."""
        source = {"module": self.module} if self.module else {"pickled": self.pickled}
        return pickle.dumps({"parent": os.getpid(), "path": sys.path, "program": source})


def find_by_name(function: Callable[..., Any]) -> tuple[Program, str] | None:
    """Return module and qualified name under which another process finds a function, or None.

    A script and a notebook have none: another process must not run them again.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__", "__mp_main__") or not isinstance(function, types.FunctionType) or "<" in name:
        return None
    found: Any = sys.modules.get(module)
    program = Program(module=module, origin=_origin(getattr(found, "__file__", None)))
    for part in name.split("."):
        found = getattr(found, part, None)
    inner = getattr(found, "function", None)  # what a decorator made of it stands there under its name
    return (program, name) if function in (found, inner) else None


def _origin(file: str | None) -> str:
    try:
        return f"{file} {os.stat(file).st_mtime_ns}" if file else ""
    except OSError:
        return str(file)


def send_by_value(function: Callable[..., Any]) -> tuple[Program, str]:
    """Return a function as bytes, with what it refers to.

    Raises:
        CannotSendError: If that cannot be sent, such as a lock or an open file, or is very long.
    """
    failures: list[Exception] = []
    with boundary(failures.append):
        pickled = cloudpickle.dumps(function)
        if len(pickled) <= _MAX_BYTES:
            return Program(pickled=pickled), ""
        raise CannotSendError(f"what it refers to has {len(pickled)} bytes")
    raise CannotSendError(f"{type(failures[0]).__name__}: {str(failures[0])[:200]}")
