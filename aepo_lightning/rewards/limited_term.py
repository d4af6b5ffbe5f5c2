"""One term of a reward with its place, its deadline and what its failure means."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.contracts.blame import describe_failure
from aepo_lightning.contracts.reward import RewardInput, RewardLimits
from aepo_lightning.contracts.reward_term import TermOutput, checked_term
from aepo_lightning.errors import RewardError, boundary
from aepo_lightning.event_loop import CutOffError, Places, call_function, cut_off, is_coroutine_function
from aepo_lightning.rewards.function import FunctionReward
from aepo_lightning.rewards.process import ProcessReward

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedTerm:
    """Asks a term.

    Attributes:
        name: Of the term.
        term: A term, a reward, or a function of the trajectory.
        limits: What it may cost, unless it is arithmetic alone.
        owner: What the term is part of, for messages.

    Raises:
        ConfigError: If it should run in a process and cannot be sent there.
    """

    name: str
    term: Callable[[RewardInput], Any]
    limits: RewardLimits
    owner: str
    _call: Callable[[RewardInput], Any] = field(init=False, repr=False, compare=False)
    _places: Places = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Choose how the term is called; nothing is started yet."""
        # What wraps a function as a reward would say that a number from 1 on is a right answer.
        call: Callable[[RewardInput], Any] = self.term.function if isinstance(self.term, FunctionReward) else self.term
        is_plain = not (self.is_immediate or is_coroutine_function(call))
        if self.limits.isolation == "process" and is_plain:
            call = ProcessReward(call, self.limits.deadline_s).ask
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_places", Places(self.limits.max_concurrent))

    @property
    def is_immediate(self) -> bool:
        """Whether it is arithmetic alone."""
        return bool(getattr(self.term, "is_immediate", False))

    async def ask(self, sample: RewardInput) -> TermOutput:
        """Return what the term says of a trajectory.

        Raises:
            RewardError: If it failed, and its limits do not say what that means.
        """
        failures: list[Exception] = []
        label, question_id = f"term `{self.name}` of `{self.owner}`", sample.question.question_id
        with boundary(failures.append):
            return checked_term(await self._answer(sample, label), label, question_id)
        problem = self._describe(failures[0], label, question_id)
        if self.limits.on_error == "fail":
            raise RewardError(problem) from failures[0]
        logger.warning("%s The run goes on.", problem)
        value, is_scored = self.limits.failure
        return TermOutput(value=value, reason=problem, is_scored=is_scored, has_failed=True)

    async def _answer(self, sample: RewardInput, label: str) -> Any:
        if self.is_immediate:
            answer = self._call(sample)
            return await answer if inspect.isawaitable(answer) else answer
        asked = getattr(self._call, "__self__", self._call)  # of a method, what it is of
        async with self._places.take():
            work = call_function(self._call, sample, "aepo-reward")
            return await cut_off(work, self.limits.time_for(asked), label)

    def _describe(self, error: Exception, label: str, question_id: str) -> str:
        if isinstance(error, CutOffError):
            rule = f"must answer within {self.limits.deadline_s:g} s (`deadline_s`), but did not"
        elif isinstance(error, RewardError) and label in str(error):
            return str(error)
        else:
            rule = f"must not fail, but raised {describe_failure(error)}"
        return f"The {label} {rule}, for question {question_id!r}."
