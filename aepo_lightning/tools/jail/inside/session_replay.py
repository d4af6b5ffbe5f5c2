"""Between the calls of a session: output goes nowhere while earlier code runs again, and each piece really ends.

All that is called after code has run was bound before, in this module or in copies of others.
"""

import os
import sys
from _random import Random
from atexit import _run_exitfuncs
from collections.abc import Callable, Iterable, Sequence
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from os import O_WRONLY, close, devnull, dup, dup2
from os import open as open_file
from signal import ITIMER_PROF, ITIMER_REAL, ITIMER_VIRTUAL, setitimer
from sys import getrecursionlimit, modules, setrecursionlimit
from threading import _shutdown, current_thread  # type: ignore[attr-defined]
from threading import enumerate as list_threads
from time import sleep
from typing import Any

from aepo_lightning.tools.jail.inside.own_copies import BUILTINS, attempt

globals()["__builtins__"] = BUILTINS  # of all functions below
_end_process = os._exit
_leave = sys.exit
_join_thread = sys.modules["threading"].Thread.join
_DEEP_ENOUGH = 1000  # frames that a runner can rely on
_TIMERS = (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF)
_SHORT_S = 0.001


def replay(
    history: Sequence[tuple[str, int]], execute: Callable[[str], None], seed_generators: Callable[[int], None]
) -> None:
    """Run earlier code again as it was run then. Nobody sees its output; an error ended only its own piece.

    Args:
        history: Code and seed of each piece.
        execute: Runs code.
        seed_generators: Seeds the generators that code may use.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)
    kept = [dup(descriptor) for descriptor in (1, 2)]
    os._exit = _leave  # type: ignore[assignment]  # what ended an earlier call must not end this one
    for source, seed in history:
        silence()
        seed_generators(seed)
        try:  # noqa: SIM105 - `suppress` can be replaced
            execute(source)
        except BaseException:  # noqa: BLE001 - it ended only its own piece
            pass
        end_piece()
    if os._exit is _leave:
        os._exit = _end_process
    silence()
    # Earlier code may have closed its streams or put something in their place: this call has its own all the same.
    are_whole = [_is_flushed(stream) for stream in streams] == [True] * len(streams)
    for target, descriptor in enumerate(kept, start=1):
        dup2(descriptor, target)
        close(descriptor)
    if are_whole:
        sys.stdin, sys.stdout, sys.stderr = streams
    else:
        open_streams()


def end_piece() -> None:
    """Do what happened at the end of an earlier call: its threads and exit functions ran, its timers were forgotten."""
    setrecursionlimit(max(getrecursionlimit(), _DEEP_ENOUGH))
    attempt(_wait_for_threads)
    attempt(_run_exitfuncs)
    for timer in _TIMERS:
        setitimer(timer, 0)


def end_interpreter() -> None:
    """Do what the end of an interpreter does: wait for threads, run exit functions, write what is in buffers."""
    attempt(_shutdown)
    attempt(_run_exitfuncs)
    for name in ("stdout", "stderr"):
        attempt(lambda name=name: vars(sys)[name].flush())


def silence() -> None:
    """Send output nowhere."""
    nothing = open_file(devnull, O_WRONLY)
    for descriptor in (1, 2):
        dup2(nothing, descriptor)
    if nothing not in (1, 2):  # it is, if they were closed
        close(nothing)


def open_streams() -> None:
    """Lines go out as they are printed: what was printed before a time-out is part of the answer."""
    sys.stdin = TextIOWrapper(BufferedReader(FileIO(0, closefd=False)), "utf-8", "replace")
    sys.stdout, sys.stderr = (
        TextIOWrapper(
            BufferedWriter(FileIO(descriptor, "w", closefd=False)), "utf-8", "backslashreplace", line_buffering=True
        )
        for descriptor in (1, 2)
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


class Generators:
    """The random generators that code may use. A forked child has those of its parent, so each call seeds them.

    Made before code runs; what is imported later is looked up then.
    """

    def __init__(self) -> None:
        self._random = sys.modules["random"]._inst
        self._seeds = {name: _seed_function(name) for name in ("numpy.random", "sympy.core.random")}

    def seed(self, number: int) -> None:
        """Seed all there are."""
        Random.seed(self._random, number)
        self._random.gauss_next = None
        for name, known in self._seeds.items():
            function = known or attempt(_seed_function, name)
            if function is not None:
                attempt(function, number % (1 << 32) if name == "numpy.random" else number)


def _seed_function(name: str) -> Any:
    module = modules.get(name)
    return None if module is None else module.seed


def _is_flushed(stream: Any) -> bool:
    try:
        stream.flush()
    except BaseException:  # noqa: BLE001 - closed, detached, or replaced part by part
        return False
    return True


def _wait_for_threads() -> None:
    pools: dict[Any, Any] = dict(attempt(_pool_threads) or {})
    threads: Iterable[Any] = list_threads()
    for thread in threads:
        if thread in pools:  # it waits for work until the interpreter ends
            while not pools[thread].empty():
                sleep(_SHORT_S)
        elif not thread.daemon and thread is not current_thread():
            _join_thread(thread)


def _pool_threads() -> dict[Any, Any]:
    """Return the threads of executors, each with its queue."""
    module: Any = modules.get("concurrent.futures.thread")
    return {} if module is None else dict(module._threads_queues)
