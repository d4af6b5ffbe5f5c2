"""What the sampler asks of a chat format: prompts, turns and tool results as tokens and back."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall, ToolSpec


@runtime_checkable
class ChatFormat(Protocol):
    """Turns messages, turns and tool results into one another. Tokens are only ever appended."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn."""
        ...

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        ...

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages of a prompt, and the tools where the format lists them."""
        ...

    def parse_calls(self, turn_text: str, finish_reason: FinishReason) -> tuple[ToolCall, ...]:
        """Read the tool calls of a turn.

        Args:
            turn_text: What the policy wrote in this turn.
            finish_reason: Why it stopped: a stop string or the end of its message.

        Returns:
            The calls, none if the trajectory is over. One that cannot be read has `problem` set.
        """
        ...

    def encode_results(self, texts: Sequence[str]) -> list[list[int]]:
        """Write the answers to a turn's calls, a list of tokens for each. One after the other they open the next turn.

        Control tags and special tokens inside the texts are made harmless and stay visible.
        """
        ...

    def encode_text(self, text: str) -> list[int]:
        """Encode text that no policy sampled, without adding anything to it."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        ...


@runtime_checkable
class OpeningChatFormat(ChatFormat, Protocol):
    """A chat format whose prompts may end with words of the policy, which then belong to its response."""

    @property
    def opening(self) -> str:
        """What the prompt writes in the policy's name before its first words, such as `<think>`; often nothing."""
        ...


@runtime_checkable
class CallWritingChatFormat(ChatFormat, Protocol):
    """A chat format that can show a call, so that a start can try whether it is read."""

    def write_call(self, spec: ToolSpec, arguments: Mapping[str, Any]) -> str:
        """Return a call as the policy should write it, whose arguments fit the tool."""
        ...
