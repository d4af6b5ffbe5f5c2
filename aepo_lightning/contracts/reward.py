"""What a reward sees of a finished trajectory, what it answers, and the Protocol of rewards."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from decimal import Decimal
from numbers import Real
from typing import Any, Protocol, no_type_check, runtime_checkable

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.errors import RewardError

MAX_REWARD = 1e12
"""Largest size of a reward: float32, in which groups are centred and scaled, keeps nothing of the others beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """A finished trajectory as a reward sees it."""

    question: Question
    response_text: str
    """Everything after the prompt, tool results included, decoded without special tokens."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    stop_reason: StopReason = StopReason.EOS


@no_type_check  # authors write what they have; `checked_output` looks at it where it arrives
@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutput:
    """What a trajectory is worth, and why. Numbers of numpy and torch are taken, too, and become plain ones."""

    reward: float
    is_correct: bool
    """Exact match with one of the accepted answers after normalisation; what pass@k counts."""
    is_well_formed: bool
    f1: float = 0.0
    answer: str = ""
    reason: str = ""
    is_scored: bool = True
    """False where the reward failed and the run goes on: the trajectory is neither compared nor trained on."""


@runtime_checkable
class Reward(Protocol):
    """Scores a finished trajectory.

    One that is arithmetic alone, and so can neither wait nor hang, may say so by an attribute `is_immediate = True`: it
    is called in place, without a deadline.
    """

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth."""
        ...


@runtime_checkable
class ChecksGolds(Protocol):
    """A reward that can tell at once, for every row of a file, whether it would ever pay an accepted answer."""

    def gold_problem(self, question: Question, answer: str) -> str | None:
        """Return why a response that gives exactly this answer would not earn the full reward, or None if it would."""
        ...


def checked_output(value: object, reward: str, question_id: str) -> RewardOutput:
    """Return what a reward answered with plain numbers in it, or refuse it.

    Args:
        value: A `RewardOutput`, or a number: the reward, which counts as correct from 1 on. Numbers may be of any kind:
            Python's, numpy's and torch's, truth values included.
        reward: Its name, for the message.
        question_id: The question that was answered, for the message.

    Raises:
        RewardError: If it is something else, or a number is missing, not finite, or larger than `MAX_REWARD`.
    """
    if not isinstance(value, RewardOutput):
        number = _number(value)
        if number is None:
            rule = f"return a finite number up to {MAX_REWARD:g} or a `RewardOutput`"
            raise _refusal(reward, rule, value, question_id)
        return RewardOutput(reward=number, is_correct=number >= 1.0, is_well_formed=True)
    if _is_plain(value):
        return value
    plain: dict[str, Any] = {}
    for each in fields(RewardOutput):
        read, kind = _READERS[each.type]
        found = getattr(value, each.name)
        plain[each.name] = read(found)
        if plain[each.name] is None:
            raise _refusal(reward, f"return {kind} in `{each.name}`", found, question_id)
    return RewardOutput(**plain)


def _refusal(reward: str, rule: str, value: object, question_id: str) -> RewardError:
    found = f"{type(value).__name__} {value!r:.80}"
    return RewardError(f"The reward `{reward}` must {rule}, but got {found} for question {question_id!r}.")


def _is_plain(output: RewardOutput) -> bool:
    """Return whether nothing needs to be converted, which holds for almost all."""
    numbers, flags = (output.reward, output.f1), (output.is_correct, output.is_well_formed, output.is_scored)
    return (
        all(type(number) is float and abs(number) <= MAX_REWARD for number in numbers)
        and all(type(flag) is bool for flag in flags)
        and type(output.answer) is str
        and type(output.reason) is str
    )


def _number(value: Any) -> float | None:
    """Return a number of any kind as a float, or None if it is none or not finite."""
    if not isinstance(value, Real | Decimal):
        if getattr(value, "size", None) == 1 or (hasattr(value, "numel") and value.numel() == 1):
            return _number(value.item())  # of numpy or torch
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= MAX_REWARD else None


def _flag(value: Any) -> bool | None:
    """Return a truth value of any kind, or None if it is neither true nor false."""
    number = _number(value)
    return None if number is None or number not in (0.0, 1.0) else bool(number)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    float: (_number, f"a finite number up to {MAX_REWARD:g}"),
    bool: (_flag, "a truth value"),
    str: (_text, "a text"),
}
