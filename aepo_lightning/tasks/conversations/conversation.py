"""A conversation, whatever it was written as, and the reasons for which a row cannot be trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


class Fault(StrEnum):
    """Why a row cannot be used. The values end a sentence that begins with a number of rows."""

    UNREADABLE = "that are no JSON object"
    NO_MESSAGES = "without a list of messages"
    UNKNOWN_ROLE = "with an unknown role"
    NOT_TEXT = "with a message that is no text"
    NO_ASSISTANT = "without an assistant turn"
    NO_QUESTION = "whose assistant speaks before anybody asks"
    EMPTY = "with an empty assistant turn"
    TWO_TURNS = "with two assistant turns in a row"
    BROKEN_TAGS = "with broken tags"
    BROKEN_CALL = "with a tool call that cannot be read"
    UNKNOWN_TOOL = "with a call of a tool that the run does not offer"
    UNWRITABLE_CALL = "with a tool call that the chat format cannot write"
    CALL_WITHOUT_RESULT = "with a tool call without its result"
    RESULT_WITHOUT_CALL = "with a tool result without its call"
    UNFINISHED = "that end with a tool result"
    CONTROL_TOKENS = "with control tokens in an assistant turn"
    TOO_LONG = "that are too long"


class UnusableRowError(ValueError):
    """A row that cannot be trained on."""

    def __init__(self, fault: Fault, found: object) -> None:
        """Keep why.

        Args:
            fault: The reason that it is counted under.
            found: What was there; its end is kept, where most faults are.
        """
        text = found if isinstance(found, str) else repr(found)
        self.fault, self.found = fault, text if len(text) <= _MOST_CHARACTERS else f"...{text[-_MOST_CHARACTERS:]}"
        super().__init__(f"{fault}: {self.found}")


_MOST_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """A tool call that stands beside the text of a message."""

    name: str
    arguments: Mapping[str, Any]
    call_id: str = ""
    """What its result names. Empty where results follow in the order of the calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: Role
    text: str
    """Of an assistant, thoughts that stood in a field of their own included, in `<think>` tags."""
    calls: tuple[WrittenCall, ...] = ()
    """Calls of an assistant that are not written in its text."""
    call_id: str = ""
    """Which call a tool answers. Empty for the next one."""


Conversation = tuple[ChatMessage, ...]
"""Messages in order. A tool's words may also stand in an assistant's text, in `<result>` tags."""
