"""Runs code in a forked child: fresh streams, a fresh `__main__`, seeded generators, a short traceback."""

import builtins
import os
import random  # noqa: F401 - seeded for every call
import signal
import sys
from linecache import cache as public_cache
from os import write
from sys import setprofile, settrace
from types import ModuleType
from typing import Any, NoReturn

from aepo_lightning.tools.jail.inside.config import WORK_FOLDER
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.inside.lockdown import Lockdown
from aepo_lightning.tools.jail.inside.own_copies import BUILTINS, attempt, own_copy
from aepo_lightning.tools.jail.inside.plumbing import Plumbing
from aepo_lightning.tools.jail.inside.scratch import Mark, Scratch
from aepo_lightning.tools.jail.inside.session_replay import (
    Generators,
    end_interpreter,
    open_streams,
    replay,
)

globals()["__builtins__"] = BUILTINS  # of all functions below: code may put something else in a builtin's place
_linecache = own_copy("linecache")
_traceback = own_copy("traceback", linecache=_linecache)
_echo = own_copy("aepo_lightning.tools.jail.inside.python_child", ast=own_copy("ast"))
_FILENAME = "<python>"
_MAX_FRAMES = -3  # the last three
_end_process = os._exit


def run_child(
    timeout_s: float, request: Scratch, lockdown: Lockdown, plumbing: Plumbing, out_of_memory: Mark
) -> NoReturn:
    """Lock this process down, run the code and end the process.

    Args:
        timeout_s: Seconds that the code may run.
        request: The job, packed.
        lockdown: What to give up first.
        plumbing: Where to read and write. Why the lockdown failed goes to a descriptor that the code itself never
            has, so it cannot pretend that the sandbox is at fault.
        out_of_memory: Set if a `MemoryError` ends the code.
    """
    code = 1
    try:
        job = _prepare(timeout_s, request, lockdown, plumbing)
        if job is not None:
            code = _run_to_the_end(job, out_of_memory)
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


def _run_to_the_end(job: Job, out_of_memory: Mark) -> int:
    open_streams()
    code = _run(job, out_of_memory)
    end_interpreter()
    return code


def _run(job: Job, out_of_memory: Mark) -> int:
    sys.argv = ["-c"]
    module = ModuleType("__main__")
    vars(module)["__builtins__"] = vars(builtins)
    sys.modules["__main__"] = module  # pickle and dataclasses look classes of the code up there
    generators = Generators()
    if job.history:
        replay(job.history, lambda source: _execute(source, module), generators.seed)
    generators.seed(job.seed)
    try:
        _execute(job.code, module)
    except SystemExit as stop:
        return _exit_code(stop.code)
    except MemoryError as error:
        out_of_memory.set()
        _show(error, module)
        return 1
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt too ends the code with a traceback
        _show(error, module)
        return 1
    return 0


def _execute(source: str, module: ModuleType) -> None:
    lines = (len(source), None, source.splitlines(keepends=True), _FILENAME)
    _linecache.cache[_FILENAME] = public_cache[_FILENAME] = lines
    try:
        exec(compile(_echo.echo_last_expression(source), _FILENAME, "exec"), vars(module))
    finally:
        # Here, where no new frame begins: what code has set to be called with every line may raise.
        for forget in (settrace, setprofile, settrace, setprofile):
            try:  # noqa: SIM105 - `suppress` is a frame
                forget(None)
            except BaseException:  # noqa: BLE001 - one that has raised is forgotten
                pass


def _exit_code(code: Any) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    attempt(lambda: print(code, file=sys.stderr))  # noqa: T201 - what an interpreter does with sys.exit("text")
    return 1


def _show(error: BaseException, module: ModuleType) -> None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != _FILENAME:
        frames = frames.tb_next
    try:
        _traceback.print_exception(type(error), error, frames, limit=_MAX_FRAMES)
    except BaseException:  # noqa: BLE001 - no memory left, or the code broke its own stderr
        vars(module).clear()
        write(2, f"{type(error).__name__}\n".encode())
