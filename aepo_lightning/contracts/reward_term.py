"""A term of a reward: one number about a finished trajectory, and what it knows beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, no_type_check, runtime_checkable

from aepo_lightning.contracts.reward import MAX_REWARD, RewardInput, RewardOutput, read_flag, read_number, read_text
from aepo_lightning.errors import RewardError


@no_type_check  # authors write what they have; `checked_term` looks at it where it arrives
@dataclass(frozen=True, slots=True, kw_only=True)
class TermOutput:
    """What one term found. None is not known: other terms may say it."""

    value: float
    """Before its weight."""
    is_correct: bool | None = None
    """Whether the answer is right; what pass@k counts."""
    is_well_formed: bool | None = None
    f1: float | None = None
    """How far the answer agrees with the best accepted one, in [0, 1]."""
    answer: str = ""
    reason: str = ""
    is_scored: bool = True
    """False where the term cannot say what the trajectory is worth."""
    is_final: bool = False
    """Whether the term decides alone: nothing else adds to the reward."""
    has_failed: bool = False
    """Whether the value is the one that limits state for a failure."""


@runtime_checkable
class RewardTerm(Protocol):
    """Looks at one side of a finished trajectory. Every `Reward` and every function of a `RewardInput` is one, too.

    One that is arithmetic alone may say so by an attribute `is_immediate = True`.
    """

    async def __call__(self, sample: RewardInput) -> TermOutput:
        """Return what it found."""
        ...


def checked_term(value: object, term: str, question_id: str) -> TermOutput:
    """Return what a term answered with plain numbers in it, or refuse it.

    Args:
        value: A `TermOutput`; a `RewardOutput`, whose `reward` is the value; or a number of any kind, which says
            nothing but the value.
        term: Its name, for the message: what must follow "The".
        question_id: The question that was answered, for the message.

    Raises:
        RewardError: If it is something else, or a number is missing, not finite, or larger than `MAX_REWARD`.
    """
    if isinstance(value, RewardOutput):
        shared = ("is_correct", "is_well_formed", "f1", "answer", "reason", "is_scored", "has_failed")
        value = TermOutput(value=value.reward, **{name: getattr(value, name) for name in shared})
    elif not isinstance(value, TermOutput):
        number = read_number(value)
        if number is None:
            rule = f"return a finite number up to {MAX_REWARD:g} or a `TermOutput`"
            raise _refusal(term, rule, value, question_id)
        return TermOutput(value=number)
    if _is_plain(value):
        return value
    plain: dict[str, Any] = {}
    for name, (read, kind, is_needed) in _READERS.items():
        found = getattr(value, name)
        plain[name] = read(found) if found is not None or is_needed else None
        if plain[name] is None and (found is not None or is_needed):
            raise _refusal(term, f"return {kind} in `{name}`", found, question_id)
    return TermOutput(**plain)


def _is_plain(output: TermOutput) -> bool:
    """Return whether nothing needs to be converted, which holds for almost all."""
    numbers, flags = (output.value, output.f1), (output.is_scored, output.is_final, output.has_failed)
    return (
        all(each is None or (type(each) is float and abs(each) <= MAX_REWARD) for each in numbers)
        and output.value is not None
        and all(type(flag) is bool for flag in flags)
        and all(flag is None or type(flag) is bool for flag in (output.is_correct, output.is_well_formed))
        and type(output.answer) is str
        and type(output.reason) is str
    )


def _refusal(term: str, rule: str, value: object, question_id: str) -> RewardError:
    found = f"{type(value).__name__} {value!r:.80}"
    return RewardError(f"The {term} must {rule}, but got {found} for question {question_id!r}.")


_NUMBER = f"a finite number up to {MAX_REWARD:g}"
_READERS: dict[str, tuple[Callable[[Any], Any], str, bool]] = {
    "value": (read_number, _NUMBER, True),
    "is_correct": (read_flag, "a truth value or None", False),
    "is_well_formed": (read_flag, "a truth value or None", False),
    "f1": (read_number, f"{_NUMBER} or None", False),
    "answer": (read_text, "a text", True),
    "reason": (read_text, "a text", True),
    "is_scored": (read_flag, "a truth value", True),
    "is_final": (read_flag, "a truth value", True),
    "has_failed": (read_flag, "a truth value", True),
}
"""How each field is read, what it must be, and whether it must be there."""
