"""What runs on the other side: a fork server that loads functions once, and workers that call them.

It is started as a program of its own and knows the standard library only, so that a worker has what the functions
import and nothing else. The server forks a worker when it is told to and ends it when it is told to; a worker takes
one call after another over its own socket. Everything ends with the process that started the server.

What starts threads or uses a GPU while it is loaded does not survive a fork. Then the server begins anew without it,
and each worker loads it for itself.
"""

import asyncio
import ctypes
import gc
import importlib
import inspect
import json
import os
import pickle
import random
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

_HEADER = struct.Struct("!Q")
_ORDER = struct.Struct("!cQ")
_LOOK_S = 1.0
_PR_SET_PDEATHSIG = 1
FORK, KILL = b"f", b"k"
TEXT, VALUE = b"t", b"v"
ANSWER, FAILURE = b"a", b"e"
_GPU_DRIVERS = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")


def is_fork_server() -> bool:
    """Return whether this process runs this file, to call functions for another one."""
    return getattr(sys.modules.get("__main__"), "__file__", None) == __file__


def read_exactly(channel: socket.socket, size: int) -> bytes:
    """Return so many bytes.

    Raises:
        EOFError: If the other side is gone.
    """
    pieces = bytearray()
    while len(pieces) < size:
        piece = channel.recv(min(size - len(pieces), 1 << 20))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)


def read_frame(channel: socket.socket) -> bytes:
    """Return the next message."""
    (size,) = _HEADER.unpack(read_exactly(channel, _HEADER.size))
    return read_exactly(channel, size)


def pack_frame(body: bytes) -> bytes:
    """Return a message as it is sent."""
    return _HEADER.pack(len(body)) + body


def pack_order(kind: bytes, worker: int) -> bytes:
    """Return what tells the server to fork a worker or to end it."""
    return _ORDER.pack(kind, worker)


class Functions:
    """The functions of one program: those of a module, or one that came as it is.

    Args:
        program: `module` to import, or `pickled` bytes of a function.
    """

    def __init__(self, program: Mapping[str, Any]) -> None:
        self._known: dict[str, Callable[..., Any]] = {}
        if "module" in program:
            self._home: Any = importlib.import_module(program["module"])
        else:
            self._known[""] = pickle.loads(program["pickled"])

    def find(self, name: str) -> Callable[..., Any]:
        """Return a function by its qualified name; what a decorator made of one counts as that."""
        if name not in self._known:
            found = self._home
            for part in name.split("."):
                found = getattr(found, part)
            self._known[name] = found if isinstance(found, types.FunctionType) else found.function
        return self._known[name]


def lost_in_a_fork() -> str:
    """Return what this process does that a fork of it would not do or could not use, or nothing."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        return f"starts threads ({', '.join(others)[:80]})"
    is_initialized = getattr(getattr(sys.modules.get("torch"), "cuda", None), "is_initialized", None)
    opened = []
    with suppress(OSError):  # not on every system
        for each in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed in the meantime
                opened.append(os.readlink(f"/proc/self/fd/{each}"))
    is_in_use = any(path.startswith(_GPU_DRIVERS) for path in opened)
    return "uses a GPU" if is_in_use or (is_initialized is not None and is_initialized()) else ""


class Server:
    """Forks and ends workers on orders from the process that started it.

    Args:
        control: Where orders come from.
        settings: What comes first there, if it was read already and what it names must be loaded by each worker.
    """

    def __init__(self, control: socket.socket, settings: bytes | None = None) -> None:
        self._control = control
        first = read_frame(control) if settings is None else settings
        told = pickle.loads(first)
        self._parent: int = told["parent"]
        self._program: Mapping[str, Any] = told["program"]
        self._functions: Functions | None = None
        self._workers: dict[int, int] = {}
        self._problem = ""
        self._libc = ctypes.CDLL(None)
        sys.path[:] = told["path"]
        if settings is None:
            self._load()
            if not self._problem and (reason := lost_in_a_fork()):
                self._begin_anew(first, reason)
        gc.collect()
        gc.freeze()  # what is never collected is never copied either

    def _load(self) -> None:
        try:
            self._functions = Functions(self._program)
        except BaseException as error:  # noqa: BLE001 - reported to whoever asks for a worker
            self._problem = f"{type(error).__name__}: {error}"

    def _begin_anew(self, settings: bytes, reason: str) -> NoReturn:
        """Become a server of the same number that has loaded nothing."""
        what = self._program.get("module", "a function")
        text = f"{what} {reason} while it is loaded, which no fork keeps: each process that calls it loads it anew."
        os.write(2, f"{text}\n".encode())
        with tempfile.TemporaryFile() as file:
            file.write(settings)
            file.flush()
            channels = (self._control.fileno(), file.fileno())
            for each in channels:
                os.set_inheritable(each, True)
            os.execv(sys.executable, [sys.executable, "-P", __file__, *map(str, channels)])

    def run(self) -> None:
        """Follow orders until the other side is gone."""
        try:
            while os.getppid() == self._parent:
                ready, _, _ = select.select([self._control], [], [], _LOOK_S)
                self._reap()
                if ready and not self._follow():
                    return
        finally:
            for pid in self._workers.values():
                _end(pid)

    def _follow(self) -> bool:
        order, descriptors, _, _ = socket.recv_fds(self._control, _ORDER.size, 1)
        if not order:
            return False
        order += read_exactly(self._control, _ORDER.size - len(order))
        kind, worker = _ORDER.unpack(order)
        if kind == KILL and worker in self._workers:
            _end(self._workers[worker])
        elif kind == FORK:
            with suppress(OSError):  # too many processes: the closed socket tells
                self._workers[worker] = self._fork(descriptors[0])
            os.close(descriptors[0])
        return True

    def _fork(self, descriptor: int) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        server = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setpgid(0, 0)  # with all that the function starts
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == server:
                self._control.close()
                self._serve(socket.socket(fileno=descriptor))
        finally:
            os._exit(0)

    def _serve(self, channel: socket.socket) -> None:
        if self._functions is None and not self._problem:
            self._load()
        channel.sendall(pack_frame(self._problem.encode("utf-8", "replace")))
        if self._functions is None:
            return
        with suppress(EOFError, ConnectionError):
            while True:
                reply = _answer(self._functions, read_frame(channel))
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError, ValueError):
                        stream.flush()
                channel.sendall(pack_frame(reply))

    def _reap(self) -> None:
        for worker, pid in list(self._workers.items()):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            del self._workers[worker]


def _end(pid: int) -> None:
    started = _started_by(pid)
    for kill in (os.killpg, os.kill):  # the group may not be there yet
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    for each in started:  # in groups of their own
        with suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def _started_by(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have, as far as the system tells."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
                found += map(int, children.read().split())
    return [*found, *(each for child in found for each in _started_by(child))]


def _answer(functions: Functions, frame: bytes) -> bytes:
    """Call a function; return what it answered or how it failed."""
    try:
        job = pickle.loads(frame)
        _seed(job["seed"])
        return ANSWER + _call(functions.find(job["function"]), job)
    except BaseException as error:  # noqa: BLE001 - told to whoever called
        return FAILURE + json.dumps(describe_error(error)).encode()


def _call(function: Callable[..., Any], job: Mapping[str, Any]) -> bytes:
    """Call a function, await what it returns if need be, and return it as bytes.

    Raises:
        RuntimeError: If the function tried to end the process or the iteration of somebody else.
        Exception: Whatever else it raises.
    """
    try:
        answer = function(*job["arguments"], **job["named"])
        if inspect.isawaitable(answer):
            answer = asyncio.run(_await(answer))
        return _pickled(answer) if job["kind"] == VALUE else to_text(answer).encode("utf-8", "surrogatepass")
    except SystemExit as error:
        raise RuntimeError("the function tried to end the process.") from error
    except (KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError) as error:
        raise RuntimeError(f"the function raised {type(error).__name__}.") from error


def to_text(answer: object) -> str:
    """Return an answer as text; None is no text."""
    return "" if answer is None else answer if isinstance(answer, str) else str(answer)


def _pickled(answer: object) -> bytes:
    try:
        return pickle.dumps(answer)
    except Exception as error:  # any class may be answered
        raise TypeError(f"an answer that cannot be sent, {type(answer).__name__}: {error}") from error


async def _await(answer: Any) -> Any:
    return await answer


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return the names of an error and its bases, message and line, and how long to wait before another attempt."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - any class may be raised
        message = f"{type(error).__name__}, which cannot say what it is."
    pause = getattr(error, "retry_after_s", None)
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return {
        "names": [kind.__name__ for kind in type(error).__mro__],
        "message": message,
        "raised_at": f"{os.path.basename(frame.f_code.co_filename)}, line {line}",
        "retry_after_s": float(pause) if isinstance(pause, int | float) else None,
    }


def _seed(seed: int) -> None:
    """Seed the generators that are there: workers are copies of one process, and would all draw the same numbers."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _kept_settings(numbers: Sequence[str]) -> bytes | None:
    if not numbers:
        return None
    with open(int(numbers[0]), "rb") as file:
        file.seek(0)
        return file.read()


def main() -> NoReturn:
    """Serve on the socket whose number is the argument, with the settings in the file whose number may follow."""
    try:
        with suppress(EOFError, ConnectionError):
            Server(socket.socket(fileno=int(sys.argv[1])), _kept_settings(sys.argv[2:])).run()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
