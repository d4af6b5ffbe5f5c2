"""Runs code in a forked child: fresh streams, a fresh `__main__`, seeded generators, a short traceback."""

import atexit
import io
import linecache
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn, TextIO

from aepo_lightning.tools.jail.inside.config import WORK_FOLDER
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.inside.lockdown import Lockdown
from aepo_lightning.tools.jail.inside.plumbing import Plumbing
from aepo_lightning.tools.jail.inside.python_child import echo_last_expression
from aepo_lightning.tools.jail.inside.scratch import Scratch

_FILENAME = "<python>"
_MAX_FRAMES = -3  # the last three
EXIT_MEMORY = 241
_end_process = os._exit  # code may put something else in its place


def run_child(timeout_s: float, request: Scratch, lockdown: Lockdown, plumbing: Plumbing) -> NoReturn:
    """Lock this process down, run the code and end the process.

    Args:
        timeout_s: Seconds that the code may run.
        request: The job, packed.
        lockdown: What to give up first.
        plumbing: Where to read and write. Why the lockdown failed goes to a descriptor that the code itself never
            has, so it cannot pretend that the sandbox is at fault.
    """
    code = 1
    try:
        job = _prepare(timeout_s, request, lockdown, plumbing)
        if job is not None:
            code = _run_to_the_end(job)
    finally:
        _end_process(code)


def _prepare(timeout_s: float, request: Scratch, lockdown: Lockdown, plumbing: Plumbing) -> Job | None:
    """Read the job and lock this process down, or report why that failed and return None."""
    try:
        job = Job.read(timeout_s, bytes(request.view))
        plumbing.keep_child_ends(job.stdin.encode("utf-8", "replace"))
        os.setpgid(0, 0)
        os.chdir(WORK_FOLDER)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        lockdown.enforce(job.cpu_s)
    except (OSError, ValueError, OverflowError) as error:
        os.write(plumbing.failures[1], str(error).encode())
        return None
    return job


def _run_to_the_end(job: Job) -> int:
    _open_streams()
    code = _run(job)
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    return code


def _run(job: Job) -> int:
    sys.argv = ["-c"]
    module = ModuleType("__main__")
    sys.modules["__main__"] = module  # pickle and dataclasses look classes of the code up there
    if job.history:
        _replay(job.history, module)
    _seed_generators(job.seed)
    try:
        _execute(job.code, module)
    except SystemExit as stop:
        return _exit_code(stop.code)
    except MemoryError as error:
        _show(error, module)
        return EXIT_MEMORY
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt too ends the code with a traceback
        _show(error, module)
        return 1
    return 0


def _execute(source: str, module: ModuleType) -> None:
    linecache.cache[_FILENAME] = (len(source), None, source.splitlines(keepends=True), _FILENAME)
    exec(compile(echo_last_expression(source), _FILENAME, "exec"), module.__dict__)


def _replay(history: Sequence[tuple[str, int]], module: ModuleType) -> None:
    """Run earlier code again as it was run then. Nobody sees its output; an error ended only its own piece."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    os._exit = sys.exit  # type: ignore[assignment]  # what ended an earlier call must not end this one
    for source, seed in history:
        _silence()
        _seed_generators(seed)
        with suppress(BaseException):
            _execute(source, module)
        _end_piece()
    if os._exit is sys.exit:
        os._exit = _end_process
    _silence()
    # Earlier code may have closed its streams or put something in their place: this call has its own all the same.
    num_flushed = sum(map(_is_flushed, streams))
    for target, descriptor in enumerate(kept, start=1):
        os.dup2(descriptor, target)
        os.close(descriptor)
    if num_flushed == len(streams):
        sys.stdin, sys.stdout, sys.stderr = streams
    else:
        _open_streams()


def _is_flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):  # closed or detached
        return False
    return True


def _silence() -> None:
    """Send output nowhere."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    if nothing not in (1, 2):  # it is, if they were closed
        os.close(nothing)


def _end_piece() -> None:
    """Do what happened at the end of an earlier call: its threads and exit functions ran, its timers were forgotten."""
    with suppress(BaseException):
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)


def _exit_code(code: Any) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - what an interpreter does with sys.exit("text")
    return 1


def _show(error: BaseException, module: ModuleType) -> None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != _FILENAME:
        frames = frames.tb_next
    try:
        traceback.print_exception(type(error), error, frames, limit=_MAX_FRAMES)
    except BaseException:  # noqa: BLE001 - no memory left, or the code broke its own stderr
        module.__dict__.clear()
        os.write(2, f"{type(error).__name__}\n".encode())


def _open_streams() -> None:
    """Lines go out as they are printed: what was printed before a time-out is part of the answer."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "replace")
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
            "utf-8",
            "backslashreplace",
            line_buffering=True,
        )
        for descriptor in (1, 2)
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _seed_generators(seed: int) -> None:
    """A forked child has the generators of its parent: without this every call would draw the same numbers."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % (1 << 32))
    if sympy_random := sys.modules.get("sympy.core.random"):
        sympy_random.seed(seed)
