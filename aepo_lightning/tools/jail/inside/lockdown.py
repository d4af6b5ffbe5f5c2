"""What a child gives up before it runs code: descriptors, resources, privileges, files and system calls."""

import ctypes
import os
import resource
from dataclasses import dataclass

from aepo_lightning.tools.jail.inside import landlock, seccomp

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
_MAX_PROCESSES, _MAX_OPEN_FILES = 32, 128
_MAX_DESCRIPTOR = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockdown:
    """Everything prepared by the zygote, so that a child only has to put it in force."""

    memory_mb: int
    max_file_mb: int
    seccomp_filter: bytes
    landlock_rules: int | None
    """File descriptor of the rules; None where the kernel has no Landlock."""

    def enforce(self, cpu_s: int) -> None:
        """Confine this process for ever. All descriptors but the first three are closed.

        Args:
            cpu_s: Seconds of processor time.

        Raises:
            OSError: If any part cannot be put in force; code must not run then.
        """
        _limit_resources(self.memory_mb, self.max_file_mb, cpu_s)
        give_up_privileges()
        if self.landlock_rules is not None:
            landlock.restrict(self.landlock_rules)
        seccomp.install_filter(self.seccomp_filter)
        os.closerange(3, _MAX_DESCRIPTOR)


def give_up_privileges() -> None:
    """Never gain a privilege again, and let nobody of the same user look into this process.

    Raises:
        OSError: If the kernel refuses.
    """
    _control_process(_PR_SET_NO_NEW_PRIVS, 1)
    _control_process(_PR_SET_DUMPABLE, 0)


def become_user(uid: int) -> None:
    """Change user and group for good and leave all other groups.

    Raises:
        OSError: If this process may not.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _limit_resources(memory_mb: int, max_file_mb: int, cpu_s: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: max_file_mb << 20,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_NPROC: _MAX_PROCESSES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: _MAX_OPEN_FILES,
        resource.RLIMIT_CPU: cpu_s,
    }
    for kind, limit in limits.items():
        # The first limit on processor time is a signal of its own, which says why the code ended; the second kills.
        hard = limit + (kind == resource.RLIMIT_CPU)
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            limit, hard = min(limit, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (limit, hard))


def _control_process(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")
