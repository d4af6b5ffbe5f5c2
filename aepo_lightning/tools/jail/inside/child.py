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
from typing import Any, NoReturn

from aepo_lightning.tools.jail.inside.config import WORK_FOLDER
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.inside.lockdown import Lockdown
from aepo_lightning.tools.jail.inside.plumbing import Plumbing
from aepo_lightning.tools.python_child import echo_last_expression

_FILENAME = "<python>"
_MAX_FRAMES = -3  # the last three
EXIT_MEMORY = 241
_end_process = os._exit  # code may put something else in its place


def run_child(job: Job, lockdown: Lockdown, plumbing: Plumbing) -> NoReturn:
    """Lock this process down, run the code and end the process.

    Args:
        job: What to run.
        lockdown: What to give up first.
        plumbing: Where to read and write. Why the lockdown failed goes to a descriptor that the code itself never
            has, so it cannot pretend that the sandbox is at fault.
    """
    code = 1
    try:
        plumbing.keep_child_ends()
        os.setpgid(0, 0)
        os.chdir(WORK_FOLDER)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _is_locked_down(lockdown, job.cpu_s, plumbing.failures[1]):
            code = _run_to_the_end(job)
    finally:
        _end_process(code)


def _is_locked_down(lockdown: Lockdown, cpu_s: int, failures: int) -> bool:
    try:
        lockdown.enforce(cpu_s)
    except OSError as error:
        os.write(failures, str(error).encode())
        return False
    return True


def _run_to_the_end(job: Job) -> int:
    _open_streams()
    code = _run(job)
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
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
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    os._exit = sys.exit  # type: ignore[assignment]  # what ended an earlier call must not end this one
    for source, seed in history:
        _seed_generators(seed)
        with suppress(BaseException):
            _execute(source, module)
    if os._exit is sys.exit:
        os._exit = _end_process
    for descriptor, stream in zip((1, 2), (sys.stdout, sys.stderr), strict=True):
        with suppress(BaseException):
            stream.flush()
        os.dup2(kept[descriptor - 1], descriptor)
    for descriptor in (*kept, nothing):
        os.close(descriptor)


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
