r"""The paper's trajectory format: tags around thoughts, tool calls, tool results and the answer.

    <think>..</think> ( <search>q</search> | <python>c</python> ) <result>..</result> ... <answer>..\boxed{x}..</answer>

A tool with one text parameter gets the text between its tags; one with several gets JSON arguments:
`<multiply>{"a": 2, "b": 3}</multiply>`. The prompt of a question that brings no system message says so.

Tokens are only ever appended. Text of the policy is read but never encoded again; text of a tool is encoded once, after
everything in it that could be taken for a tag or a special token has been made harmless.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats.calls import unwrapped
from aepo_lightning.chat_formats.guard import CALL_TAGS
from aepo_lightning.chat_formats.instructions import (
    SystemPrompt,
    example_arguments,
    is_written,
    tag_instructions,
    takes_only_text,
    takes_text,
    with_instructions,
)
from aepo_lightning.chat_formats.json_text import load_json
from aepo_lightning.chat_formats.text_codec import SystemRole, TextCodec, refuse_special
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall, ToolSpec
from aepo_lightning.errors import ConfigError

_OWN = ("think", "result", "answer")
_FOREIGN = "tool_call"
"""The tag in which many models have learnt to write calls. It ends a turn, and the policy is told how to do it here."""


class TagFormat:
    """Turns messages, tool results and sampled tokens into one another."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[ToolSpec | str] = (),
        *,
        system_prompt: SystemPrompt = "auto",
        system_role: SystemRole = "system",
        result_template: str = " <result>\n{text}\n</result>",
    ) -> None:
        """Prepare the format.

        Args:
            tokenizer: Tokenizer of the policy.
            tools: What the run offers; a name alone is a tool that takes text. Calls to the paper's other tools are
                caught as well, and answered with a message that says what is available.
            system_prompt: What a question without a system message gets: `tools` tells how to reason, call each tool
                and answer, `none` is nothing, `auto` is `tools` for tokenizers that read text.
            system_role: Where system messages go: `user` is before the question, for templates that take none.
            result_template: How a tool result is written, with `{text}` where it goes.

        Raises:
            ConfigError: If the template has no `{text}`, a choice is unknown, tags are special tokens, or a tool bears
                the name of a tag.
        """
        if "{text}" not in result_template:
            raise ConfigError(f"`result_template` must contain {{text}}, but got {result_template!r}.")
        specs = [ToolSpec(name=each) if isinstance(each, str) else each for each in tools]
        self._specs = {spec.name: spec for spec in specs}
        self._tags = tuple(dict.fromkeys((*self._specs, *CALL_TAGS, _FOREIGN)))
        self._stop = tuple(f"</{tag}>" for tag in self._tags)
        self._template = result_template
        if taken := [name for name in self._specs if name in _OWN]:
            raise ConfigError(f"A tool must not bear the name of a tag of the format, but got {taken[0]!r}. Rename it.")
        written = (*self._specs, *_OWN)
        refuse_special(tokenizer, (f"{opening}{tag}>" for tag in written for opening in ("<", "</")))
        self._codec = TextCodec(tokenizer, self._tags, system_role=system_role)
        is_told = is_written(system_prompt, tokenizer)
        self._instructions = tag_instructions(specs, self._codec.neutralise) if is_told else ""

    @classmethod
    def for_tools(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        specs: Sequence[ToolSpec],
        system_prompt: SystemPrompt = "auto",
        system_role: SystemRole = "system",
    ) -> "TagFormat":
        """Build the format of a run that offers these tools."""
        return cls(tokenizer, specs, system_prompt=system_prompt, system_role=system_role)

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn: the closing tag of every tool, and that of calls as other models write them."""
        return self._stop

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        return self._codec.vocab_size

    @property
    def opening(self) -> str:
        """What the chat template writes in the policy's name before its first words, such as `<think>`."""
        return self._codec.opening

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages with the tokenizer's chat template, after what there is to say of the tools.

        Raises:
            ConfigError: If the tokenizer has no chat template, or it cannot write these messages.
        """
        return self._codec.encode_prompt(with_instructions(messages, self._instructions))

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

    def write_call(self, spec: ToolSpec, arguments: Mapping[str, Any]) -> str:
        """Return a call as the prompt asks for it."""
        if not spec.parameters.get("properties"):
            return f"<{spec.name}></{spec.name}>"
        if takes_only_text(spec):
            return f"<{spec.name}> {arguments[spec.text_parameter]} </{spec.name}>"
        return f"<{spec.name}>{json.dumps(arguments, ensure_ascii=False)}</{spec.name}>"

    def parse_call(self, turn_text: str) -> ToolCall:
        """Read the tool call that ended a turn: the text between the last opening tag and the closing tag.

        Args:
            turn_text: Text of one turn that a stop string has ended.

        Returns:
            The call. A closing tag without its opening one, an empty call, or arguments that cannot be read come back
            with `problem` set.
        """
        closings = [(turn_text.rfind(f"</{tag}>"), tag) for tag in self._tags]
        end, tag = max(closings)
        if end < 0:
            return ToolCall(tool="", text="", problem="No tool call was found.")
        start = turn_text.rfind(f"<{tag}>", 0, end)
        if start < 0:
            return ToolCall(tool=tag, text="", problem=f"</{tag}> without <{tag}> before it.")
        text = turn_text[start + len(tag) + 2 : end].strip()
        if tag == _FOREIGN and tag not in self._specs:
            wanted = " or ".join(f"<{name}>...</{name}>" for name in self._specs) or "no call at all"
            return ToolCall(tool="", text=text, problem=f"<{tag}> is not how calls are written here. Write {wanted}.")
        return _call(self._specs.get(tag), tag, text)


def _call(spec: ToolSpec | None, tag: str, text: str) -> ToolCall:
    if spec is not None and not spec.parameters.get("properties"):
        return ToolCall(tool=tag, text=text)
    if not text:
        return ToolCall(tool=tag, text=text, problem=f"<{tag}></{tag}> is empty.")
    if spec is None or takes_only_text(spec) or (takes_text(spec) and not text.startswith("{")):
        return ToolCall(tool=tag, text=text)
    try:
        arguments = load_json(text)
        if isinstance(arguments, str):  # some models write the arguments as JSON inside JSON
            arguments = load_json(arguments)
    except ValueError as error:
        reason = f"what stands between its tags is not JSON: {getattr(error, 'msg', error)}"
    else:
        if isinstance(arguments, dict):
            properties = spec.parameters.get("properties", {})
            return ToolCall(tool=tag, text=text, arguments=unwrapped(arguments, tag, properties))
        reason = "it is no object"
    return ToolCall(
        tool=tag, text=text, problem=f"{tag} takes JSON arguments such as {example_arguments(spec)}, but {reason}."
    )
