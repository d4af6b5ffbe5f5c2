"""Landlock by system calls: which files may be read and written; no TCP; no signals and abstract sockets outwards.

Numbers are from `linux/landlock.h`. The three system calls have the same numbers on all processors.
"""

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_FIFO, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 10, 1 << 12, 1 << 13, 1 << 14
_READ = _READ_FILE | _READ_DIR
_WRITE = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_FIFO | _MAKE_SYM | _REFER | _TRUNCATE
_DEVICE = _READ_FILE | _WRITE_FILE
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # kinds of file access by version; 16 from version 5 on
_NO_TCP, _NO_SIGNALS_AND_SOCKETS = 0b11, 0b11
_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """Return the version of Landlock's interface, 0 if this kernel has none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))))


def make_ruleset(*, readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> int:
    """Write down what may be reached. Nothing is enforced before `restrict`.

    Args:
        readable: Folders that may be read. Missing ones are skipped.
        writable: Folders that may be read and changed.
        devices: Files that may be read and written.

    Returns:
        A file descriptor of the rules.

    Raises:
        OSError: If the kernel refuses.
    """
    version = landlock_version()
    rights = (1 << _NUM_RIGHTS.get(version, 16)) - 1
    fields = [rights, _NO_TCP, _NO_SIGNALS_AND_SOCKETS][: 1 + (version >= 4) + (version >= 6)]
    rules = _call(_CREATE_RULESET, struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields), 0)
    for paths, access in ((readable, _READ), (writable, _READ | _WRITE), (devices, _DEVICE)):
        for path in paths:
            _allow(rules, path, access & rights)
    return rules


def restrict(rules: int) -> None:
    """Confine this thread and everything it starts to the rules. Needs no_new_privs; it can never be taken back.

    Raises:
        OSError: If the kernel refuses.
    """
    if _libc.syscall(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "Landlock refused the rules")


def _allow(rules: int, path: str, access: int) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", access, file), 0)
    finally:
        os.close(file)


def _call(number: int, *arguments: int | bytes) -> int:
    typed = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *typed))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock call {number} failed")
    return result
