"""One call in the zygote: fork a child, collect what it writes, stop it at a limit, leave nothing running."""

import math
import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.tools.jail.inside.child import run_child
from aepo_lightning.tools.jail.inside.config import WORK_FOLDER, ZygoteConfig
from aepo_lightning.tools.jail.inside.job import name_exit
from aepo_lightning.tools.jail.inside.lockdown import Lockdown
from aepo_lightning.tools.jail.inside.plumbing import Plumbing
from aepo_lightning.tools.jail.inside.scratch import Mark, Scratch

_LOOK_EVERY_S = 0.03
_PRIORITIES = ((1, 5), (5, 10), (100, 15))
"""After so many times `demote_after_s` of processor time a call goes on with this priority (as `nice` counts): a third,
a tenth, a thirtieth of a core that a fresh call wants too. In steps: long calls are slowed down, not starved."""


@dataclass(eq=False)
class Call:
    """A running child and what it has written so far."""

    config: ZygoteConfig
    control: socket.socket
    deadline: float
    pid: int
    outputs: dict[int, Scratch]
    started: float = field(default_factory=time.monotonic)
    verdict: str | None = None
    is_abandoned: bool = False
    num_demotions: int = 0

    def supervise(self) -> None:
        """Collect output until the child ends or breaks a limit."""
        poller = select.poll()
        ending = os.pidfd_open(self.pid)
        try:
            for descriptor in (*self.outputs, self.control.fileno(), self.config.owner, ending):
                poller.register(descriptor, select.POLLIN)
            has_ended = False
            while not has_ended and self.verdict is None:
                for descriptor, _ in poller.poll(self._patience_ms()):
                    if descriptor in self.outputs:
                        if self._read(descriptor) == 0:
                            poller.unregister(descriptor)
                    elif descriptor == ending:
                        has_ended = True
                    elif descriptor == self.config.owner:
                        self.verdict, self.is_abandoned = "lost", True
                    else:
                        self._listen()
                if not has_ended:
                    self._check_limits()
        finally:
            os.close(ending)

    def drain(self) -> None:
        """Read what was written in the last moment; nobody writes any more."""
        for descriptor in self.outputs:
            while self.verdict != "output" and self._read(descriptor):
                pass

    def _patience_ms(self) -> int:
        return max(0, math.ceil(1000 * min(_LOOK_EVERY_S, self.deadline - time.monotonic())))

    def _read(self, descriptor: int) -> int | None:
        """Take what is there and count it: nothing at the end, None if more may come."""
        kept = self.outputs[descriptor]
        try:
            num_bytes = kept.read(descriptor)
        except BlockingIOError:
            return None
        if len(kept) > self.config.max_output_bytes:
            kept.truncate(self.config.max_output_bytes)
            self.verdict = self.verdict or "output"
        return num_bytes

    def _listen(self) -> None:
        """Any word from outside means that nobody wants the answer; silence for ever means that nobody is there."""
        self.verdict = "lost"
        self.is_abandoned = not self.control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)

    def _check_limits(self) -> None:
        now = time.monotonic()
        if self.verdict is None and now >= self.deadline:
            self.verdict = "timeout"
        if self.verdict is None and num_files_used() > self.config.max_files:
            self.verdict = "files"
        self._demote()

    def _demote(self) -> None:
        """Lower the priority of a call that has used much of the processor already."""
        with suppress(OSError):  # it has just ended
            used = _processor_seconds(self.pid) / self.config.demote_after_s
            priorities = [priority for after, priority in _PRIORITIES if used >= after]
            if len(priorities) > self.num_demotions:
                self.num_demotions = len(priorities)
                os.setpriority(os.PRIO_PGRP, self.pid, priorities[-1])


def run_call(
    timeout_s: float, request: Scratch, config: ZygoteConfig, lockdown: Lockdown, control: socket.socket
) -> tuple[dict[str, Any], list[Scratch]] | None:
    """Run code in a child of this process and make sure that nothing of it keeps running.

    Args:
        timeout_s: Seconds that the code may run.
        request: The job, packed: only the child reads it. Closed afterwards.
        config: Limits.
        lockdown: What the child gives up.
        control: Where a word from outside ends the call.

    Returns:
        Header of the answer, and standard output and error, for the caller to close; None if nobody is there to
        receive it.
    """
    plumbing, out_of_memory = Plumbing.lay(), Mark()
    pid = os.fork()
    if pid == 0:
        run_child(timeout_s, request, lockdown, plumbing, out_of_memory)
    request.close()
    plumbing.keep_parent_ends()
    # Room for one byte more than may be written: it tells a flood from what just fits.
    outputs = {descriptor: Scratch(config.max_output_bytes + 1) for descriptor in (plumbing.out[0], plumbing.err[0])}
    call = Call(config, control, time.monotonic() + timeout_s, pid, outputs)
    call.supervise()
    status = kill_everything(pid)
    duration_s = time.monotonic() - call.started
    call.drain()
    failure = plumbing.close()
    has_no_memory = out_of_memory.take()
    if call.is_abandoned:
        return None
    answer = {"exit": call.verdict or name_exit(status, has_no_memory), "code": status, "duration_s": duration_s}
    if failure:
        answer |= {"exit": "lost", "failure": failure.decode("utf-8", "replace")}
    return answer, list(outputs.values())


def kill_everything(pid: int | None = None) -> int:
    """Kill every process but this one and wait until none is left.

    This process is the first of its PID namespace, or it would have refused to start: the signal reaches nobody else.

    Args:
        pid: The process whose exit status is wanted.

    Returns:
        Its exit code, or minus the signal that ended it; 0 if it was not there.
    """
    status = 0
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    while True:
        try:
            ended, code = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if ended == pid:
            status = os.waitstatus_to_exitcode(code)


def _processor_seconds(pid: int) -> float:
    """Return what a process has used, from the clock that the kernel keeps for each."""
    return time.clock_gettime((~pid << 3) | 2)


def num_files_used() -> int:
    """Count files and folders in the work folder, hidden and deleted ones included."""
    volume = os.statvfs(WORK_FOLDER)
    return volume.f_files - volume.f_ffree
