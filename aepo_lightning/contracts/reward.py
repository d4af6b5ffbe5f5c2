"""What a reward sees of a finished trajectory, what it answers, and the Protocol of rewards."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """A finished trajectory as a reward sees it."""

    question: Question
    response_text: str
    """Everything after the prompt, tool results included, decoded without special tokens."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    stop_reason: StopReason = StopReason.EOS


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOutput:
    """What a trajectory is worth, and why."""

    reward: float
    is_correct: bool
    """Exact match with one of the accepted answers after normalisation; what pass@k counts."""
    is_well_formed: bool
    f1: float = 0.0
    answer: str = ""
    reason: str = ""


@runtime_checkable
class Reward(Protocol):
    """Scores a finished trajectory."""

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth."""
        ...
