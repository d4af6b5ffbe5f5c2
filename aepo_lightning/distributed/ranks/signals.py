"""Signals that end the run, whatever it waits for.

The handler raises `SignalExit` where the main thread stands, which unwinds it like any error: rollouts are cancelled,
tools closed, other ranks told. But Python runs handlers in the main thread only, and not while it is inside a
collective or foreign code; and what is unwound may wait for a thread that never ends. So the kernel also writes to a
socket, and a thread that reads it says what happens and ends the process, with its children, when its time is over.
Where some code holds the interpreter, no thread can, and a process beside this one does (`StarvationWatch`).
"""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Any

from aepo_lightning.distributed.ranks.evidence import where
from aepo_lightning.distributed.ranks.starved import StarvationWatch
from aepo_lightning.errors import SIGNAL_STATUS, SignalExit, boundary

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""What schedulers, launchers and people send."""
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
_TICK_S = 0.2
_SAME_S = 0.5
"""Launchers send a signal to a process and to its group: what comes so soon is the same signal."""
_SAY_S = 2.0
RUN_NOTICE = "the run ends (exit status {status}). What was generated is kept; `ckpt_path=last` goes on from there."
"""What is said when a signal comes, after its name."""
_STOP = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTimes:
    """How long a process may take to end by itself after a signal, in seconds."""

    grace_s: float = 10.0
    """Below the 30 s after which SLURM, Kubernetes and torchrun kill."""
    saving_s: float = 600.0
    """The longest by which a checkpoint that is being written puts that off."""


class SignalWatch:
    """Ends this process when it is told to. One at a time, made in the main thread."""

    def __init__(
        self,
        end: Callable[[SignalExit, bool], object],
        times: EndTimes | None = None,
        lent: Mapping[int, Any] | None = None,
        notice: str = RUN_NOTICE,
    ) -> None:
        """Take over signals.

        Args:
            end: Ends the process and what it has started. The flag says whether it must do so at once.
            times: How long the main thread may take.
            lent: Signals that belong to this watch only while its handler is in place, with the handlers that were
                there before. None takes those that nobody else handles or ignores, for good.
            notice: What to say.
        """
        self._end = end
        self._notice = notice
        self._times = times or EndTimes()
        self._depth = 0
        self._owed: int | None = None
        self._is_raised = False
        self._is_said = threading.Event()
        self.first: int | None = None
        """The signal that came first."""
        self._reader, self._writer = (end.detach() for end in socket.socketpair())
        os.set_blocking(self._writer, False)
        self.is_lent = lent is not None
        """Whether signals are this watch's only while its handler is in place."""
        handlers = {number: signal.getsignal(number) for number in ENDING}
        own = {number: handler for number, handler in handlers.items() if handler in _DEFAULTS}
        self._before: dict[int, Any] = own if lent is None else dict(lent)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self.claim()
        self._thread = threading.Thread(target=self._run, daemon=True, name="signal-watch")
        self._thread.start()
        self._starvation = self._watch_starvation() if lent is None else None

    def _watch_starvation(self) -> StarvationWatch:
        return StarvationWatch(self._reader, os.getpid(), self._before, self._times.grace_s, _SAME_S)

    def claim(self) -> None:
        """Put the handlers in place again, above those that others have put there since."""
        for number in self._before:
            signal.signal(number, self._handle)

    def close(self) -> None:
        """Give the signals back, unless one has come: then the thread sees to the end of the process."""
        if self.first is not None:
            return
        self.restore()
        os.write(self._writer, bytes([_STOP]))
        self._thread.join()
        if self._starvation is not None:
            self._starvation.close()
        os.close(self._reader)
        os.close(self._writer)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            if self.owns(number):
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let what is inside come to its end before a signal interrupts the main thread."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._owed is not None and not self._depth:
            number, self._owed, self._is_raised = self._owed, None, True
            raise SignalExit(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False) != self._writer:  # somebody took it away
            self._notify(number)
        self.first = self.first or number
        if self._is_raised:
            return  # the main thread is on its way out already
        if self._depth:
            self._owed = number
            return
        self._is_raised = True
        self._is_said.wait(_SAY_S)  # or the process may have ended before
        raise SignalExit(number)

    def owns(self, number: int) -> bool:
        """Return whether a signal is this watch's to act on."""
        return number in self._before and (not self.is_lent or signal.getsignal(number) == self._handle)

    def _notify(self, number: int) -> None:
        with suppress(OSError):
            os.write(self._writer, bytes([number]))

    def _next(self, seconds: float | None) -> int | None:
        """Return the next signal or `_STOP`, or None if there is none for so long."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        return os.read(self._reader, 1)[0] if ready else None

    def _run(self) -> None:
        while (number := self._next(None) or _STOP) != _STOP and not self.owns(number):
            continue
        if number == _STOP:
            return
        self.first = self.first or number
        began = monotonic()
        self._say(number)
        for stop in [*_stops]:
            with boundary(lambda error: write_line(f"Work beside the main thread goes on: {error!r}")):
                stop()
        self._wait(number, began)

    def _wait(self, first: int, began: float) -> None:
        """Give the main thread its time, then end the process."""
        deadline = began + self._times.grace_s
        while (now := monotonic()) < deadline:
            number = self._next(min(_TICK_S, deadline - now))
            if number in self._before and now - began > _SAME_S:
                write_line(f"{signal.Signals(number).name} again: the run is ended at once.")
                self._end(SignalExit(first), True)
                return
            if self._depth and now - began < self._times.saving_s:
                deadline = now + self._times.grace_s
        place = [line.strip() for line in where().splitlines() if line.lstrip().startswith("File ")]
        stood = f" It stood at {place[-1].removeprefix('File ')}." if place else ""
        write_line(f"The run has not ended within {self._times.grace_s:g} s, so it is ended.{stood}")
        self._end(SignalExit(first), False)

    def _say(self, number: int) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            notice = self._notice.format(status=SIGNAL_STATUS + number)
            write_line(f"{signal.Signals(number).name}: {notice} A second signal ends it at once.")
        self._is_said.set()


_current: list[SignalWatch] = []
_stops: list[Callable[[], object]] = []
_forking = threading.local()


@contextmanager
def ending_on_signals(
    end: Callable[[SignalExit, bool], object], times: EndTimes | None = None, notice: str = RUN_NOTICE
) -> Iterator[None]:
    """End the process on signals until the block is left; nothing happens in a thread or inside another such block.

    Args:
        end: As `SignalWatch` has it.
        times: How long the main thread may take.
        notice: What to say when a signal comes, with a place for the `status`.
    """
    if _current or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = SignalWatch(end, times, notice=notice)
    _current.append(watch)
    try:
        yield
    finally:
        if watch.first is None:
            _current.remove(watch)
        watch.close()


def end_on_lent_signals(end: Callable[[SignalExit, bool], object], handlers: Mapping[int, Any]) -> None:
    """End the process on signals for as long as nobody replaces their handlers; does nothing in a thread.

    Args:
        end: As `SignalWatch` has it.
        handlers: What to put back in a forked child, by signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if handlers and not _current:
        _current.append(SignalWatch(end, lent=handlers))
    if _current and (handlers or not _current[-1].is_lent):
        _current[-1].claim()


@contextmanager
def finishing() -> Iterator[None]:
    """Let what is inside come to its end before a signal interrupts it; a second signal does not wait."""
    with _current[-1].finishing() if _current else nullcontext():
        yield


def stop_on_signal(stop: Callable[[], object]) -> Callable[[], None]:
    """Have a signal that ends the run stop the work of another thread at once, whatever the main thread is inside of.

    Args:
        stop: Called in a thread of its own; tells the work to end and does not wait for that.

    Returns:
        What is called when the work is over.
    """
    _stops.append(stop)
    return lambda: _stops.remove(stop)


def ending_signal() -> int | None:
    """Return the signal that has told this process to end, if any has."""
    return _current[-1].first if _current else None


def is_heard(number: int) -> bool:
    """Return whether a signal would end this process by `SignalExit`."""
    return bool(_current) and _current[-1].owns(number)


def exit_status() -> int:
    """Return the status of a process that fails: 1, or that of the signal which told it to end."""
    first = ending_signal()
    return 1 if first is None else SIGNAL_STATUS + first


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING if _current else ())


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    """Give the signals back: what a child gets is not meant for its parent, whose socket it shares."""
    while _current:
        with suppress(ValueError):
            _current.pop().restore()
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def write_line(text: str) -> None:
    """Write a line to the standard error, past the locks of streams that the main thread may hold."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def flush_streams(seconds: float = 1.0) -> None:
    """Write out what was printed, but wait for no stream that is stuck."""

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(seconds)
