"""The near side of worker processes: one fork server for each program, and its workers, lent one call at a time."""

import asyncio
import atexit
import os
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

from aepo_lightning.processes.child import FORK, KILL, pack_frame, pack_order
from aepo_lightning.processes.errors import BrokenCallError, CannotSendError, NoProcessError
from aepo_lightning.processes.program import Program

_CHILD = Path(__file__).with_name("child.py")
_START_S = 120.0  # imports of a large module from a cold disk on a loaded machine
_END_S = 2.0
_ORDER_S = 5.0
_MAX_IDLE = 16
_MAX_CALLS = 1000
"""After so many calls a worker is replaced: functions leak."""
_MAX_ANSWER_BYTES = 64 << 20
_HEADER = struct.Struct("!Q")
_servers: dict[tuple[int, Program], "ForkServer"] = {}
_servers_lock = threading.Lock()


class _GoneError(Exception):
    """The other end of a socket is closed."""


class _Worker:
    """A process that takes calls, and the socket to it."""

    def __init__(self, number: int, channel: socket.socket) -> None:
        self.number, self.channel, self.num_calls = number, channel, 0

    @property
    def is_alive(self) -> bool:
        """Whether it waits for a call."""
        try:
            self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # closed, or it has said something that nobody asked for

    async def ask(self, frame: bytes) -> bytes:
        """Send a frame, unless it is empty, and return the next one that comes back."""
        loop = asyncio.get_running_loop()
        try:
            if frame:
                await loop.sock_sendall(self.channel, pack_frame(frame))
            (size,) = _HEADER.unpack(await self._read(_HEADER.size))
            if size > _MAX_ANSWER_BYTES:
                raise BrokenCallError(f"it answered with {size} bytes, but at most {_MAX_ANSWER_BYTES} are taken.")
            return await self._read(size)
        except OSError as error:
            raise _GoneError from error

    async def _read(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        found = bytearray()
        while len(found) < size:
            piece = await loop.sock_recv(self.channel, min(size - len(found), 1 << 20))
            if not piece:
                raise _GoneError
            found += piece
        return bytes(found)


class ForkServer:
    """Calls the functions of one program in processes, each of which has one call at a time.

    A worker whose call does not come back, because it was cancelled at its deadline or because the process ended, is
    killed with all that it started, and the next call gets another. Workers end with this process, however it ends.
    May be used from several event loops.

    Args:
        program: What the workers load.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._numbers = count()
        self._idle: list[_Worker] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """Process number of the server, or None if it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    async def prepare(self) -> None:
        """Return once a worker waits for calls. It costs nothing while the server lives.

        Raises:
            CannotSendError: If the program cannot be loaded there, with the reason.
            NoProcessError: If no process can be started.
        """
        if not (self._is_ready and self.pid is not None):
            worker = await self._take()
            self._give_back(worker, is_usable=True)
            self._is_ready = True

    async def call(self, frame: bytes) -> bytes:
        """Have a worker answer a frame. Cancelling the call kills the worker at once.

        Raises:
            BrokenCallError: If the process ended instead, or its answer is too long.
            NoProcessError: If no process can be started.
        """
        worker, is_usable = await self._take(), False
        try:
            worker.num_calls += 1
            reply = await worker.ask(frame)
            is_usable = worker.num_calls < _MAX_CALLS
            return reply
        except _GoneError:
            raise BrokenCallError(
                "its process ended before it answered: it crashed, was killed or left by itself."
            ) from None
        finally:
            self._give_back(worker, is_usable)

    async def _take(self) -> _Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return await self._fork()
            if worker.is_alive:
                return worker
            self._end(worker)

    def _give_back(self, worker: _Worker, is_usable: bool) -> None:
        with self._lock:
            if is_usable and len(self._idle) < _MAX_IDLE:
                self._idle.append(worker)
                return
        self._end(worker)

    async def _fork(self) -> _Worker:
        """Start a worker, and the server if it does not run; wait until it has loaded the program."""
        problem = "the server of its processes ended"
        for _ in range(2):  # a server that has died is started anew
            worker = await asyncio.to_thread(self._order_worker)
            is_up = False
            try:
                async with asyncio.timeout(_START_S):
                    problem = (await worker.ask(b"")).decode()
                if problem:
                    raise CannotSendError(problem)
                is_up = True
                return worker
            except _GoneError:
                continue
            except TimeoutError:
                problem = f"its process was not ready within {_START_S:g} s"
            finally:
                if not is_up:
                    self._end(worker)
        raise NoProcessError(f"no process could be started: {problem}.")

    def _order_worker(self) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        worker = _Worker(next(self._numbers), ours)
        with self._lock, theirs:
            try:
                control = self._start() if self.pid is None or self._control is None else self._control
                socket.send_fds(control, [pack_order(FORK, worker.number)], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise NoProcessError(f"no process could be started: {error}.") from error
        return worker

    def _start(self) -> socket.socket:
        self._close()
        control, theirs = socket.socketpair()
        control.settimeout(_ORDER_S)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # an interrupt at the terminal is for this process
            )
        self._control = control
        control.sendall(pack_frame(self._program.settings()))
        return control

    def _end(self, worker: _Worker) -> None:
        worker.channel.close()
        with self._lock, suppress(OSError):
            if self._control is not None:
                self._control.sendall(pack_order(KILL, worker.number))

    def close(self) -> None:
        """End the server and its workers. A later call starts it again."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._close()
        for worker in idle:
            worker.channel.close()

    def _close(self) -> None:
        control, self._control, process, self._process = self._control, None, self._process, None
        self._is_ready = False
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:  # it imports something
                process.kill()
                process.wait()


def server_of(program: Program) -> ForkServer:
    """Return this process's server for a program, made at the first call. A forked child has its own."""
    with _servers_lock:
        return _servers.setdefault((os.getpid(), program), ForkServer(program))


def _close_all() -> None:
    for (pid, _), server in list(_servers.items()):
        if pid == os.getpid():
            server.close()


atexit.register(_close_all)
