r"""The paper's trajectory format: tags around thoughts, tool calls, tool results and the answer.

    <think>..</think> ( <search>q</search> | <python>c</python> ) <result>..</result> ... <answer>..\boxed{x}..</answer>

Tokens are only ever appended. Text of the policy is read but never encoded again; text of a tool is encoded once, after
everything in it that could be taken for a tag or a special token has been made harmless.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats.text_codec import CALL_TAGS, TextCodec
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall, ToolSpec
from aepo_lightning.errors import ConfigError


class TagFormat:
    """Turns messages, tool results and sampled tokens into one another."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tool_names: Sequence[str] = (),
        result_template: str = " <result>\n{text}\n</result>",
    ) -> None:
        """Prepare the format.

        Args:
            tokenizer: Tokenizer of the policy.
            tool_names: Tools that the run offers. Calls to the paper's other tools are caught as well, and answered
                with a message that says what is available.
            result_template: How a tool result is written, with `{text}` where it goes.

        Raises:
            ConfigError: If the template has no `{text}`.
        """
        if "{text}" not in result_template:
            raise ConfigError(f"`result_template` must contain {{text}}, but got {result_template!r}.")
        self._tags = tuple(dict.fromkeys((*tool_names, *CALL_TAGS)))
        self._stop = tuple(f"</{tag}>" for tag in self._tags)
        self._template = result_template
        self._codec = TextCodec(tokenizer, self._tags)

    @classmethod
    def for_tools(cls, tokenizer: PreTrainedTokenizerBase, specs: Sequence[ToolSpec]) -> "TagFormat":
        """Build the format of a run that offers these tools."""
        return cls(tokenizer, [spec.name for spec in specs])

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn: the closing tag of every tool."""
        return self._stop

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        return self._codec.vocab_size

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages with the tokenizer's chat template.

        Raises:
            ValueError: If the tokenizer has no chat template.
        """
        return self._codec.encode_prompt(messages)

    def encode_result(self, text: str) -> list[int]:
        """Write a tool result; tags and special tokens inside it are made harmless and stay visible."""
        return self.encode_text(self._template.replace("{text}", self.neutralise(text)))

    def encode_results(self, texts: Sequence[str]) -> list[list[int]]:
        """Write the answers to a turn's calls; this format has one call in a turn."""
        return [self.encode_result(text) for text in texts]

    def encode_text(self, text: str) -> list[int]:
        """Encode text that no policy sampled (tool results, demonstrations), without adding anything to it."""
        return self._codec.encode_text(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self._codec.decode(token_ids)

    def neutralise(self, text: str) -> str:
        """Replace the first character of every control tag and special token by an entity."""
        return self._codec.neutralise(text)

    def parse_calls(self, turn_text: str, finish_reason: FinishReason) -> tuple[ToolCall, ...]:
        """Read the tool call that ended a turn. A turn that ended by itself has none."""
        return (self.parse_call(turn_text),) if finish_reason is FinishReason.STOP else ()

    def parse_call(self, turn_text: str) -> ToolCall:
        """Read the tool call that ended a turn: the text between the last opening tag and the closing tag.

        Args:
            turn_text: Text of one turn that a stop string has ended.

        Returns:
            The call. A closing tag without its opening one, or an empty call, comes back with `problem` set.
        """
        closings = [(turn_text.rfind(f"</{tag}>"), tag) for tag in self._tags]
        end, tag = max(closings)
        if end < 0:
            return ToolCall(tool="", text="", problem="No tool call was found.")
        start = turn_text.rfind(f"<{tag}>", 0, end)
        if start < 0:
            return ToolCall(tool=tag, text="", problem=f"</{tag}> without <{tag}> before it.")
        text = turn_text[start + len(tag) + 2 : end].strip()
        return ToolCall(tool=tag, text=text, problem="" if text else f"<{tag}></{tag}> is empty.")
