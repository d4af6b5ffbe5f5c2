"""What is asked: questions, the tasks that they come from, and worked demonstrations for the cold start."""

from collections.abc import Callable, Mapping, Sequence
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
    """A worked trajectory for the supervised cold start.

    Turns hold words alone: the ends of messages are added where it is encoded. Turns of tools in a row are the results
    of one turn of the policy.
    """

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """What is wrong with a question."""

    problem: str
    """What it must do, what was found, and what to do."""
    rest: Question | None = None
    """What is left of the question without what is wrong. None if that is nothing."""


OnObjection = Literal["error", "drop", "keep"]
"""Refuse the file with the place of each fault, drop what is wrong, or take it as it is."""


@runtime_checkable
class StoredTask(Task, Protocol):
    """A task whose questions are all known at the start and can be looked through before the first rollout."""

    @property
    def on_bad_gold(self) -> OnObjection:
        """What happens to accepted answers that would not earn the full reward."""
        ...

    def sieve(self, look: Callable[[Question], Objection | None], reason: str, action: OnObjection) -> None:
        """Look through all questions and act on objections; rows that are dropped are counted under `reason`."""
        ...

    def summary(self) -> list[str]:
        """Return one line for each file: rows, kept, dropped by reason."""
        ...


@runtime_checkable
class DemonstrationSource(Protocol):
    """A source of worked trajectories for the cold start."""

    def demonstration(self, index: int) -> Demonstration:
        """Return demonstration `index`. The same index gives the same demonstration."""
        ...


@runtime_checkable
class ClosedVocabulary(Protocol):
    """A task whose prompts, results and demonstrations are made of few words, separated by spaces."""

    @property
    def words(self) -> Sequence[str]:
        """Every word, once."""
        ...
