"""A term of a reward: one number about a finished trajectory, and what it knows beside it."""

from dataclasses import dataclass
from typing import Protocol, no_type_check, runtime_checkable

from aepo_lightning.contracts.reward import MAX_REWARD, RewardInput, RewardOutput, plain_output, read_number, refusal


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
            raise refusal(term, rule, value, question_id)
        return TermOutput(value=number)
    return plain_output(value, TermOutput, term, question_id)
