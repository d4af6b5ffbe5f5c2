"""Plain functions as rewards in processes of their own, which a deadline really ends.

A worker is a fresh interpreter that finds the function by its module and name, so it sees nothing of this process, and
calls it in its main thread. It takes one trajectory after another; one that is cancelled ends with its worker, whatever
it does, also where it holds the interpreter.
"""

import asyncio
import ctypes
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakKeyDictionary

from aepo_lightning.contracts.blame import describe_failure, part_name
from aepo_lightning.contracts.reward import RewardInput, RewardOutput, checked_output
from aepo_lightning.errors import RewardError, boundary
from aepo_lightning.event_loop import call_in_thread, cut_off

_SPAWN = multiprocessing.get_context("spawn")
_PR_SET_PDEATHSIG = 1


class ProcessReward:
    """A reward from a plain function of the finished trajectory that is called in another process.

    As many run at once as there are CPUs; the wait for a process is not part of the deadline.

    Args:
        function: Can be sent to another process: a function of a module, or an object of a class of one.
        deadline_s: Seconds for one trajectory; infinite for none.
    """

    keeps_deadline = True

    def __init__(self, function: Callable[[RewardInput], Any], deadline_s: float = math.inf) -> None:
        self.function = function
        self._deadline_s = None if math.isinf(deadline_s) else deadline_s
        self._idle: list[_Worker] = []
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def __repr__(self) -> str:
        """Return what stays the same from process to process."""
        return f"ProcessReward({part_name(self.function)})"

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth. Cancelling the call ends its worker.

        Raises:
            RewardError: If the function raises, its process ends, or its answer is neither a number nor a
                `RewardOutput`.
            CutOffError: If the deadline has passed.
        """
        places = self._places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(os.cpu_count() or 1))
        async with places:
            problem, answer = await self._ask(sample)
        if problem:
            rule = f"must not fail, but raised {problem}, for question {sample.question.question_id!r}"
            raise RewardError(f"The reward `{part_name(self.function)}` {rule}.")
        return checked_output(answer, part_name(self.function), sample.question.question_id)

    async def _ask(self, sample: RewardInput) -> tuple[str, Any]:
        """Have a worker score a trajectory; one that does not come to an end is ended."""
        worker, is_sound = self._idle.pop() if self._idle else _Worker(self.function), False
        try:
            asking = call_in_thread(lambda: worker.ask(sample), "aepo-reward")
            reply = await cut_off(asking, self._deadline_s, part_name(self.function))
            is_sound = True
            return reply
        finally:
            if is_sound:
                self._idle.append(worker)
            else:
                worker.end()


class _Worker:
    """A process that scores one trajectory after another."""

    def __init__(self, function: Callable[[RewardInput], Any]) -> None:
        self._channel, theirs = _SPAWN.Pipe()
        self._process: BaseProcess = _SPAWN.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, sample: RewardInput) -> tuple[str, Any]:
        """Return what the function raised, or an empty text, and what it answered."""
        try:
            self._channel.send(sample)
            reply: tuple[str, Any] = self._channel.recv()
        except (EOFError, OSError) as error:
            raise RewardError("its process ended before it answered: it crashed or was killed.") from error
        return reply

    def end(self) -> None:
        """Kill the process; whoever waits for its answer learns of it."""
        self._process.kill()


def _serve(function: Callable[[RewardInput], Any], channel: Connection, parent: int) -> None:
    """Score what comes until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the other side decides
    with suppress(OSError, AttributeError):  # Linux only: end with the parent, also in the middle of a call
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(EOFError, OSError):
        while os.getppid() == parent:
            sample = channel.recv()
            failures: list[Exception] = []
            answer: Any = None
            with boundary(failures.append):
                answer = function(sample)
            with boundary(failures.append):
                channel.send((describe_failure(failures[0]) if failures else "", answer))
                continue
            channel.send((f"an answer that cannot be sent, {type(answer).__name__}: {failures[-1]}", None))
