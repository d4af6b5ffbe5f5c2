"""What is asked: questions, the tasks that they come from, and worked demonstrations for the cold start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable


class SegmentSource(StrEnum):
    """Who wrote a segment of a trajectory."""

    PROMPT = "prompt"
    POLICY = "policy"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A task instance: what the policy is asked and what counts as right."""

    question_id: str
    """Unique within a run; seeds derive from it."""
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    """Accepted answers; the reward takes the best match."""
    documents: Mapping[str, str] = field(default_factory=dict)
    """A corpus of its own that the search tool answers from, by exact query. Empty for shared corpora."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that travel with the question: source file, ability, difficulty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationTurn:
    """One piece of a demonstration: text of the policy (trained) or of a tool (masked)."""

    source: SegmentSource
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A worked trajectory for the supervised cold start."""

    question: Question
    turns: tuple[DemonstrationTurn, ...]


Split = Literal["train", "val"]


@runtime_checkable
class Task(Protocol):
    """A source of questions, addressed by index so that any position can be resumed."""

    def question(self, split: Split, index: int) -> Question:
        """Return question `index` of a split. The same index gives the same question."""
        ...

    def num_questions(self, split: Split) -> int | None:
        """Return the size of a split, or None if it has no end."""
        ...


@runtime_checkable
class DemonstrationSource(Protocol):
    """A source of worked trajectories for the cold start."""

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`. The same index gives the same demonstration."""
        ...
