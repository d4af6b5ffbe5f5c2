"""The processes of a job on this machine: noticing at once when one ends, and leaving none behind."""

import os
import select
import signal
import socket
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

_GRACE_S = 2.0
_LAUNCHER = "AEPO_LAUNCHER_PID"


@cache
def machine_id() -> str:
    """Return what two processes share if and only if they see each other's process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # no Linux: the host name must do
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(parts)


class Neighbours:
    """Processes of this machine that are watched by the kernel. Where it cannot, nothing is ever said to have ended."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.pids: dict[int, int] = {}
        self.ended: set[int] = set()
        """The ranks whose process has ended, as far as `wait` has seen."""
        self._ranks: dict[int, int] = {}
        self._sleeper, self._waker = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._sleeper, select.POLLIN)

    def add(self, pids: Mapping[int, int]) -> None:
        """Watch the processes of these ranks too."""
        self.pids |= pids
        for rank, pid in pids.items():
            self._watch(rank, pid)

    def _watch(self, rank: int, pid: int) -> None:
        if not hasattr(os, "pidfd_open"):
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self.ended.add(rank)
        except OSError:
            return
        else:
            self._ranks[handle] = rank
            self._poll.register(handle, select.POLLIN)

    def wait(self, seconds: float) -> set[int]:
        """Wait, less long if a process ends meanwhile, and return the ranks whose process has ended so far."""
        for handle, _ in self._poll.poll(seconds * 1000):
            if handle != self._sleeper:
                self._poll.unregister(handle)
                os.close(handle)
                self.ended.add(self._ranks.pop(handle))
        return self.ended

    def wake(self) -> None:
        """Let `wait` return at once from now on."""
        os.write(self._waker, b"!")


def how_it_ended(pid: int) -> str:
    """Return how a process ended, as far as this one may know: it must have started it, and not yet asked."""
    with suppress(OSError, AttributeError):
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if result is not None:
            if result.si_code == os.CLD_EXITED:
                return f"with exit status {result.si_status}"
            name = signal.Signals(result.si_status).name
            hint = " (the kernel sends it when memory runs out)" if name == "SIGKILL" else ""
            return f"by signal {name}{hint}"
    return "without a word"


def end_children(leaving: Collection[int] = (), *, at_once: bool = False) -> None:
    """End the processes that this one has started, first politely.

    Args:
        leaving: Those that are about to end by themselves.
        at_once: Leave the politeness out.
    """
    polite, forced = (signal.SIGTERM, leaving), (signal.SIGKILL, ())
    for sign, spared in (forced,) if at_once else (polite, forced):
        for pid in set(_children()) - set(spared):
            with suppress(OSError):
                os.kill(pid, sign)
        deadline = monotonic() + _GRACE_S
        while _children() and monotonic() < deadline:
            sleep(0.05)


def _children() -> list[int]:
    """Return the child processes that still run; none where the kernel keeps no list."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += [int(pid) for pid in path.read_text(encoding="utf-8").split()]
    return [pid for pid in found if not _is_over(pid)]


def _is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def watch_launcher() -> Event:
    """End this process as soon as the one that Lightning launched it from is gone; elsewhere do nothing.

    It would wait for the main process, which holds the store of the group, for as long as the strategy's timeout.
    Launchers that start all ranks (torchrun, srun) end them too.

    Returns:
        What to set when nobody is waited for any more.
    """
    is_over = Event()
    is_launched_by_lightning = int(os.environ.get("LOCAL_RANK", "0")) > 0 and not (
        {"TORCHELASTIC_RUN_ID", "SLURM_PROCID", "RANK"} & set(os.environ)
    )
    if is_launched_by_lightning:
        # Named by the launcher itself: it may have ended before this process came here.
        launcher = int(os.environ.get(_LAUNCHER, os.getppid()))
        Thread(target=_end_with, args=(launcher, is_over), daemon=True, name="launcher-watch").start()
    else:
        os.environ[_LAUNCHER] = str(os.getpid())
    return is_over


def _end_with(launcher: int, is_over: Event) -> None:
    neighbours = Neighbours()
    neighbours.add({0: launcher})
    while not neighbours.wait(1.0) and os.getppid() == launcher:
        pass
    # Whatever ends this rank with a better message comes first.
    if is_over.wait(_GRACE_S):
        return
    sys.stderr.write(f"Local rank {os.environ['LOCAL_RANK']} stops: the process that launched it has ended.\n")
    sys.stderr.flush()
    end_children()
    os._exit(1)
