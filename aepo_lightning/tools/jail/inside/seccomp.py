"""A seccomp filter written as BPF by hand: a list of allowed system calls, and a look at the arguments of a few.

No C library is needed to build it, so what is loaded is what stands here. Numbers are from `linux/filter.h`,
`linux/seccomp.h`, `linux/audit.h` and `linux/sched.h`.
"""

import ctypes
import errno
import struct
from collections.abc import Iterable

from aepo_lightning.tools.jail.inside import syscalls

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data; six arguments of 8 bytes follow at 16
_X32_BIT = 0x40000000
_CLONE_THREAD, _CLONE_NEW_NAMESPACES = 0x00010000, 0x7E020000
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK; F_OFD_GETLK; F_DUPFD_CLOEXEC, pipe sizes, seals of its input.
# The rest sends signals, leases host files, or locks them: SETOWN, SETSIG, SETLEASE, NOTIFY, OFD_SETLK, and so on.
_FCNTL_ALLOWED = (0, 1, 2, 3, 4, 5, 36, 1030, 1031, 1032, 1033, 1034)
_FCNTL_NO_EFFECT = (6, 7)  # F_SETLK, F_SETLKW: a process never conflicts with itself, and nobody else is there
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_PRCTL_ALLOWED = (3, 15, 16)  # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_MACHINES = {"x86_64": (0xC000003E, syscalls.X86_64), "aarch64": (0xC00000B7, syscalls.AARCH64)}

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, constant."""


def machines() -> tuple[str, ...]:
    """Name the processors for which there is a filter."""
    return tuple(_MACHINES)


def build_filter(machine: str, *, may_fork: bool = False) -> tuple[Instruction, ...]:
    """Write the filter for one kind of processor.

    Args:
        machine: As `platform.machine()` names it, one of `machines()`.
        may_fork: Allow new processes too, for code whose state is copied by fork.

    Returns:
        The instructions, ready for `pack_filter`.

    Raises:
        KeyError: If there is no filter for this machine.
    """
    architecture, numbers = _MACHINES[machine]
    checks = _argument_checks(may_fork)
    program: list[Instruction] = [_load(_ARCHITECTURE), (_JUMP_EQUAL, 1, 0, architecture), _return(_KILL)]
    program += [_load(_NUMBER), (_JUMP_AT_LEAST, 0, 1, _X32_BIT), _refuse(errno.EPERM)]
    program += [(_JUMP_AT_LEAST, 0, 1, syscalls.LAST_KNOWN + 1), _refuse(errno.ENOSYS)]
    for name, number in numbers.items():
        block = checks.get(name, [_return(_ALLOW)])
        program += [(_JUMP_EQUAL, 0, len(block), number), *block]
    return (*program, _refuse(errno.EPERM))


def pack_filter(program: Iterable[Instruction]) -> bytes:
    """Encode instructions as an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install_filter(packed: bytes) -> None:
    """Load a filter for this thread and everything it starts. Needs no_new_privs; it can never be taken back.

    Raises:
        OSError: If the kernel refuses.
    """
    code = ctypes.create_string_buffer(packed, len(packed))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(packed) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), header, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), "seccomp refused the filter")


def _argument_checks(may_fork: bool) -> dict[str, list[Instruction]]:
    clone = [_load(_argument(0)), (_JUMP_ANY_BIT, 0, 1, _CLONE_NEW_NAMESPACES), _refuse(errno.EPERM)]
    clone += [] if may_fork else [(_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD), _refuse(errno.EPERM)]
    return {
        "clone": [*clone, _return(_ALLOW)],
        "clone3": [_refuse(errno.ENOSYS)],  # its flags lie in memory, out of reach of a filter; C libraries use clone
        "fcntl": [
            _load(_argument(1)),
            *_each(_FCNTL_ALLOWED, _return(_ALLOW)),
            *_each(_FCNTL_NO_EFFECT, _refuse(0)),  # databases lock their files; the kernel would lock the host's, too
            _refuse(errno.EPERM),
        ],
        "ioctl": [_load(_argument(1)), *_each(_IOCTL_ALLOWED, _return(_ALLOW)), _refuse(errno.ENOTTY)],
        "prctl": [_load(_argument(0)), *_each(_PRCTL_ALLOWED, _return(_ALLOW)), _refuse(errno.EPERM)],
        "prlimit64": [  # may read limits; a new limit is a pointer that is not null
            _load(_argument(2)),
            (_JUMP_EQUAL, 0, 3, 0),
            _load(_argument(2) + 4),
            (_JUMP_EQUAL, 0, 1, 0),
            _return(_ALLOW),
            _refuse(errno.EPERM),
        ],
    }


def _each(values: Iterable[int], verdict: Instruction) -> list[Instruction]:
    return [instruction for value in values for instruction in ((_JUMP_EQUAL, 0, 1, value), verdict)]


def _argument(index: int) -> int:
    return 16 + 8 * index  # the low half: both machines are little-endian


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _return(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _refuse(number: int) -> Instruction:
    return _return(_ERRNO | number)
