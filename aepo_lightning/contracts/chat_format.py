"""What the sampler asks of a chat format: prompts, turns and tool results as tokens and back."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall


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
