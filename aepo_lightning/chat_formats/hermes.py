"""Tool calls as JSON inside `<tool_call>` tags, the format of Hermes and Qwen models, framed by the chat template.

    <tool_call>
    {"name": "search", "arguments": {"query": "..."}}
    </tool_call>

A turn ends with the policy's own end-of-message token and may hold several calls, which run at the same time. What
stands between the policy's message and a tool result, and between the results and the next message, is taken from the
tokenizer's chat template, so other models' templates work too if they place tool messages as they come.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats.instructions import SystemPrompt, answer_instructions, is_written, with_instructions
from aepo_lightning.chat_formats.json_text import load_json
from aepo_lightning.chat_formats.text_codec import TextCodec
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall, ToolSpec
from aepo_lightning.errors import ConfigError

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(f"{_OPEN}(.*?)(?:{_CLOSE}|(?={_OPEN})|$)", re.DOTALL)
_ANSWER, _RESULTS = "XYANSWERYX", ("XYFIRSTYX", "XYSECONDYX")
_MAX_QUOTED = 80


def function_schema(spec: ToolSpec) -> dict[str, Any]:
    """Return a tool as chat templates list it."""
    function = {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)}
    return {"type": "function", "function": function}


class HermesFormat:
    """JSON tool calls through the tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        specs: Sequence[ToolSpec] = (),
        *,
        system_prompt: SystemPrompt = "auto",
    ) -> None:
        """Read the frames of tool results off the chat template.

        Args:
            tokenizer: Tokenizer of the policy.
            specs: Tools that the prompt lists.
            system_prompt: What a question without a system message gets beside the template's list of tools: `tools`
                tells how to answer, `none` is nothing, `auto` is `tools` for tokenizers that read text.

        Raises:
            ConfigError: If the tokenizer has no chat template, or its template does not take tool messages as they are.
        """
        if tokenizer.chat_template is None:
            raise ConfigError("The tokenizer must have a chat template, but got none. Set `tokenizer.chat_template`.")
        if hidden := {_OPEN, _CLOSE} & set(tokenizer.all_special_tokens):
            raise ConfigError(f"{sorted(hidden)} must not be special tokens, because decoding leaves those out.")
        own_tags = [spec.name for spec in specs]
        self._codec = TextCodec(tokenizer, own_tags, [function_schema(spec) for spec in specs])
        self._instructions = answer_instructions() if is_written(system_prompt, tokenizer) else ""
        self._before, self._between, self._after = _frames(tokenizer)

    @classmethod
    def for_tools(
        cls, tokenizer: PreTrainedTokenizerBase, specs: Sequence[ToolSpec], system_prompt: SystemPrompt = "auto"
    ) -> "HermesFormat":
        """Build the format of a run that offers these tools."""
        return cls(tokenizer, specs, system_prompt=system_prompt)

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: a turn ends with the end-of-message token."""
        return ()

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        return self._codec.vocab_size

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages and the list of tools with the tokenizer's chat template."""
        return self._codec.encode_prompt(with_instructions(messages, self._instructions))

    def parse_calls(self, turn_text: str, finish_reason: FinishReason) -> tuple[ToolCall, ...]:
        """Read the calls of a turn, in order. What stands in the policy's thoughts is not a call."""
        del finish_reason
        spoken = turn_text.rpartition("</think>")[2]
        return tuple(_parse(match[1], match[0].endswith(_CLOSE)) for match in _CALL.finditer(spoken))

    def encode_results(self, texts: Sequence[str]) -> list[list[int]]:
        """Write the answers to a turn's calls as tool messages, then the opening of the policy's next message."""
        last = len(texts) - 1
        return [
            self._codec.encode_text(
                (self._between if place else self._before)
                + self._codec.neutralise(text)
                + (self._after if place == last else "")
            )
            for place, text in enumerate(texts)
        ]

    def encode_text(self, text: str) -> list[int]:
        """Encode text that no policy sampled, without adding anything to it."""
        return self._codec.encode_text(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self._codec.decode(token_ids)


def _parse(body: str, is_closed: bool) -> ToolCall:
    text = body.strip()
    if not is_closed:
        return ToolCall(tool="", text=text, problem=f"{_OPEN} without {_CLOSE} after it.")
    try:
        call = load_json(text)
    except ValueError as error:
        return ToolCall(tool="", text=text, problem=f"the call is not JSON: {getattr(error, 'msg', error)}.")
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        return ToolCall(tool="", text=text, problem='the call must be an object with a "name".')
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as JSON inside JSON
        try:
            arguments = load_json(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        return ToolCall(tool=name[:_MAX_QUOTED], text=text, problem='"arguments" must be an object.')
    return ToolCall(tool=name, text=text, arguments=arguments)


def _frames(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Return what the chat template writes before, between and after two tool results."""
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _ANSWER},
        {"role": "tool", "content": _RESULTS[0], "name": "f"},
        {"role": "tool", "content": _RESULTS[1], "name": "f"},
    ]
    text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    pieces = re.split("|".join((_ANSWER, *_RESULTS)), text)
    if len(pieces) != 4:
        raise ConfigError(
            "The chat template must write assistant and tool messages once each and as they are, but it wrote "
            f"{text!r}. Use a tokenizer whose template takes messages of the role `tool`."
        )
    _, before, between, after = pieces
    # The policy has sampled the end of its message itself.
    return before.removeprefix(str(tokenizer.eos_token)), between, after
