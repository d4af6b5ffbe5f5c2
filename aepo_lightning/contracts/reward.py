"""What a reward sees of a finished trajectory, what it answers, what it may cost, and the Protocol of rewards."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, no_type_check, runtime_checkable

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolResult, from_mapping
from aepo_lightning.errors import ConfigError, RewardError

T = TypeVar("T")

MAX_REWARD = 1e12
"""Largest size of a reward: float32, in which groups are centred and scaled, keeps nothing of the others beyond it."""
TERM_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
"""What the terms of a reward may be called: their names are parts of names of metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardLimits:
    """What a reward that is no arithmetic may cost, and what its failure means.

    Raises:
        ConfigError: If a value has no meaning.
    """

    deadline_s: float = 60.0
    """Seconds for one trajectory, without the wait for a place; infinite for none. A coroutine is then cancelled, a
    process ended. A thread cannot be stopped: it is left behind, and its place is free."""
    max_concurrent: int | None = None
    """Trajectories that it looks at at once; the others wait for a place. None is no limit."""
    isolation: Literal["thread", "process"] = "thread"
    """Where a plain function runs. `process` is for rewards of which one may hold the interpreter, such as a regular
    expression that backtracks, or need a main thread: a warm process, ended at the deadline and replaced.
    Coroutines run in the loop."""
    on_error: Literal["fail", "abstain"] | float = "fail"
    """A reward that raises, takes too long or answers with something that is no reward: `fail` ends the run with its
    name and the question, and what is finished is kept. `abstain` goes on without the trajectory: it is left out of its
    group and of the update. A number is what the trajectory earns. Either is counted."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if not self.deadline_s > 0:
            raise ConfigError(f"`deadline_s` must be positive, but got {self.deadline_s}. Use inf for no deadline.")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ConfigError(f"`max_concurrent` must be at least 1 or null, but got {self.max_concurrent}.")
        if self.isolation not in ("thread", "process"):
            raise ConfigError(f"`isolation` must be 'thread' or 'process', but got {self.isolation!r}.")
        is_number = isinstance(self.on_error, int | float) and not isinstance(self.on_error, bool)
        if not (self.on_error in ("fail", "abstain") or (is_number and abs(float(self.on_error)) <= MAX_REWARD)):
            raise ConfigError(
                f"`on_error` must be 'fail', 'abstain' or the reward of a failure, but got {self.on_error!r}."
            )

    def time_for(self, reward: object) -> float | None:
        """Return the seconds after which a reward is cut off; None if it is not, or sees to that itself."""
        is_endless = math.isinf(self.deadline_s) or getattr(reward, "keeps_deadline", False)
        return None if is_endless else self.deadline_s

    @property
    def failure(self) -> tuple[float, bool]:
        """What a trajectory earns whose reward failed in a run that goes on, and whether it counts as scored."""
        return (0.0, False) if isinstance(self.on_error, str) else (float(self.on_error), True)

    @classmethod
    def of(cls, limits: "AnyRewardLimits") -> "RewardLimits":
        """Return limits that are given as an object or as a mapping of its fields.

        Raises:
            ConfigError: If a mapping has a key that is no limit.
        """
        return limits if isinstance(limits, RewardLimits) else from_mapping(cls, limits, "limits")


AnyRewardLimits: TypeAlias = RewardLimits | Mapping[str, Any]
"""`RewardLimits(max_concurrent=8)`, or `{"max_concurrent": 8}`, as a configuration has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """A finished trajectory as a reward sees it."""

    question: Question
    response_text: str
    """Everything after the prompt, tool results included, decoded without special tokens."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    stop_reason: StopReason = StopReason.EOS
    num_response_tokens: int = 0
    """After the prompt, tool results included."""
    max_response_tokens: int | None = None
    """How many there may be. None where nobody has said it."""


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
    """False where nobody can say what the trajectory is worth: it is neither compared nor trained on."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What the terms of a reward gave, by their names, before weights and bounds."""
    has_failed: bool = False
    """Whether the reward failed, so that the numbers are those that its settings state for this."""


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
class LimitedReward(Reward, Protocol):
    """A reward that keeps limits itself, for each of its parts."""

    def limited(self, limits: RewardLimits) -> Reward:
        """Return the same reward with these limits, unless its parts have their own."""
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
        number = read_number(value)
        if number is None:
            raise refusal(f"reward `{reward}`", f"return {_NUMBER} or a `RewardOutput`", value, question_id)
        return RewardOutput(reward=number, is_correct=number >= 1.0, is_well_formed=True)
    return plain_output(value, RewardOutput, f"reward `{reward}`", question_id)


def plain_output(output: T, kind: type[T], author: str, question_id: str) -> T:
    """Return an output with plain numbers in it, itself if they are, or refuse it.

    Args:
        output: What was answered.
        kind: The dataclass that it is; a field is read as its type says.
        author: Who answered, for the message: what must follow "The".
        question_id: The question that was answered, for the message.

    Raises:
        RewardError: If a value is not of its field's kind.
    """
    plain: dict[str, Any] = {}
    shape: Any = kind
    for each in fields(shape):
        read, rule, is_needed = _READERS[each.type]
        found = getattr(output, each.name)
        plain[each.name] = None if found is None else read(found)
        if plain[each.name] is None and (found is not None or is_needed):
            raise refusal(author, f"return {rule} in `{each.name}`", found, question_id)
    is_plain = all(value is getattr(output, name) for name, value in plain.items())
    return output if is_plain else kind(**plain)


def refusal(author: str, rule: str, value: object, question_id: str) -> RewardError:
    """Return the error of an answer that breaks a rule. The arguments are those of `plain_output`."""
    found = f"{type(value).__name__} {value!r:.80}"
    return RewardError(f"The {author} must {rule}, but got {found} for question {question_id!r}.")


def read_number(value: Any) -> float | None:
    """Return a number of any kind as a float, or None if it is none or not finite."""
    if type(value) is float:
        return value if abs(value) <= MAX_REWARD else None
    if not isinstance(value, Real | Decimal):
        if getattr(value, "size", None) == 1 or (hasattr(value, "numel") and value.numel() == 1):
            return read_number(value.item())  # of numpy or torch
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= MAX_REWARD else None


def _flag(value: Any) -> bool | None:
    """Return a truth value of any kind, or None if it is neither true nor false."""
    if type(value) is bool:
        return value
    number = read_number(value)
    return None if number is None or number not in (0.0, 1.0) else bool(number)


def _text(value: object) -> str | None:
    """Return a text, or None if it is something else."""
    return value if isinstance(value, str) else None


def _terms(value: object) -> Mapping[str, float] | None:
    """Return terms by their names, or None if a name is none or what it has is no finite number."""
    if not isinstance(value, Mapping):
        return None
    if not value:
        return value
    found = {name: read_number(each) for name, each in value.items()}
    is_named = all(isinstance(name, str) and TERM_NAME.fullmatch(name) for name in found)
    plain = {name: number for name, number in found.items() if number is not None}
    return plain if is_named and len(plain) == len(found) else None


_NUMBER = f"a finite number up to {MAX_REWARD:g}"
_READERS: Mapping[Any, tuple[Callable[[Any], Any], str, bool]] = {
    float: (read_number, _NUMBER, True),
    float | None: (read_number, f"{_NUMBER} or None", False),
    bool: (_flag, "a truth value", True),
    bool | None: (_flag, "a truth value or None", False),
    str: (_text, "a text", True),
    Mapping[str, float]: (
        _terms,
        f"finite numbers up to {MAX_REWARD:g} by names of letters, digits and underscores",
        True,
    ),
}
"""By the type of a field: how it is read, what it must be, and whether it must be there."""
