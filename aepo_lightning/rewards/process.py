"""Plain functions as rewards in processes of their own, which a deadline really ends."""

import math
import os
import zlib
from collections.abc import Callable
from typing import Any

from aepo_lightning.contracts.blame import describe_failure, part_name
from aepo_lightning.contracts.reward import RewardInput, RewardOutput, checked_output
from aepo_lightning.errors import ConfigError, RewardError, boundary
from aepo_lightning.event_loop import CutOffError, Places, cut_off
from aepo_lightning.processes.calls import ProcessCalls
from aepo_lightning.processes.errors import CannotSendError, ProcessError


class ProcessReward:
    """A reward from a plain function of the finished trajectory that is called in another process.

    It runs in the main thread there, and what it draws depends on the response alone. As many run at once as there are
    CPUs; the wait for a process is not part of the deadline.

    Args:
        function: Found by its module and name in the other process, or sent there with what it refers to.
        deadline_s: Seconds for one trajectory; infinite for none.

    Raises:
        ConfigError: If the function cannot be sent.
    """

    keeps_deadline = True

    def __init__(self, function: Callable[[RewardInput], Any], deadline_s: float = math.inf) -> None:
        self.function = function
        self._deadline_s = None if math.isinf(deadline_s) else deadline_s
        self._calls = ProcessCalls(function)
        self._places = Places(os.cpu_count() or 1)
        try:
            self._calls.check()
        except CannotSendError as error:
            raise ConfigError(
                f"`reward` must be a function that can be sent to another process, but {part_name(function)} cannot "
                f"({error}). Define it in a module without what cannot be sent, or choose the thread."
            ) from None

    def __repr__(self) -> str:
        """Return what stays the same from process to process."""
        return f"ProcessReward({part_name(self.function)})"

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth. Cancelling the call ends its process.

        Raises:
            RewardError: If the function fails, or its answer is neither a number nor a `RewardOutput`.
            CutOffError: If the deadline has passed.
        """
        return checked_output(await self.ask(sample), part_name(self.function), sample.question.question_id)

    async def ask(self, sample: RewardInput) -> Any:
        """Return what the function says of a trajectory, whatever that is.

        Raises:
            RewardError: If the function raises, or its process cannot be started or ends.
            CutOffError: If the deadline has passed.
        """
        name, question_id = part_name(self.function), sample.question.question_id
        failures: list[Exception] = []
        with boundary(failures.append):
            return await self._ask(sample, name)
        error = failures[0]
        if isinstance(error, CutOffError):
            raise error
        problem = str(error).rstrip(".") if isinstance(error, ProcessError) else f"raised {describe_failure(error)}"
        raise RewardError(f"The reward `{name}` must not fail, but {problem}, for question {question_id!r}.") from error

    async def _ask(self, sample: RewardInput, name: str) -> Any:
        async with self._places.take():
            await self._calls.prepare()
            seed = zlib.crc32(sample.response_text.encode("utf-8", "surrogatepass"))
            return await cut_off(self._calls.value(sample, seed=seed), self._deadline_s, name)
