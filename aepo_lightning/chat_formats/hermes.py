"""Tool calls as JSON inside `<tool_call>` tags, the format of Hermes and Qwen models, framed by the chat template.

    <tool_call>
    {"name": "search", "arguments": {"query": "..."}}
    </tool_call>

A turn ends with the policy's own end-of-message token and may hold several calls, which run at the same time. What
stands between the policy's message and a tool result, and between the results and the next message, is taken from the
tokenizer's chat template, so other models' templates work too if they place tool messages as they come.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats.calls import read_calls, stray_calls
from aepo_lightning.chat_formats.instructions import (
    SystemPrompt,
    ToolList,
    answer_instructions,
    is_written,
    json_tool_list,
    with_instructions,
    with_tool_list,
)
from aepo_lightning.chat_formats.result_frames import ResultFrames
from aepo_lightning.chat_formats.text_codec import SystemRole, TextCodec, refuse_special
from aepo_lightning.contracts.generation import FinishReason
from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolCall, ToolSpec
from aepo_lightning.errors import ConfigError

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(f"{_OPEN}(.*?)(?:{_CLOSE}|(?={_OPEN})|$)", re.DOTALL)


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
        system_role: SystemRole = "system",
        tool_list: ToolList | str = "template",
    ) -> None:
        """Try the chat template with tools and their results.

        Args:
            tokenizer: Tokenizer of the policy.
            specs: Tools that the prompt lists.
            system_prompt: What a question without a system message gets beside the template's list of tools: `tools`
                tells how to answer, `none` is nothing, `auto` is `tools` for tokenizers that read text.
            system_role: Where system messages go: `user` is before the question, for templates that take none.
            tool_list: What tells of the tools and how they are called: the chat template, or the system message, for
                templates that list none.

        Raises:
            ConfigError: If a choice is unknown, the tokenizer has no chat template, or its template fails, does not
                end, does not list the tools though it should, or does not write each tool message once.
        """
        refuse_special(tokenizer, (_OPEN, _CLOSE))
        own_tags = [spec.name for spec in specs]
        self._specs = {spec.name: spec for spec in specs}
        if tool_list not in ("template", "system"):
            raise ConfigError(f"`tool_list` must be template or system, but got {tool_list!r}.")
        schemas = [function_schema(spec) for spec in specs]
        self._codec = TextCodec(tokenizer, own_tags, schemas if tool_list == "template" else (), system_role)
        self._tool_list = json_tool_list(schemas, self._codec.neutralise) if tool_list == "system" else ""
        self._instructions = answer_instructions() if is_written(system_prompt, tokenizer) else ""
        self._frames = ResultFrames(self._codec)
        if tool_list == "template":
            self._check_listing()

    @classmethod
    def for_tools(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        specs: Sequence[ToolSpec],
        system_prompt: SystemPrompt = "auto",
        system_role: SystemRole = "system",
        tool_list: ToolList | str = "template",
    ) -> "HermesFormat":
        """Build the format of a run that offers these tools."""
        return cls(tokenizer, specs, system_prompt=system_prompt, system_role=system_role, tool_list=tool_list)

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: a turn ends with the end-of-message token."""
        return ()

    @property
    def vocab_size(self) -> int:
        """V: number of entries of the tokenizer."""
        return self._codec.vocab_size

    @property
    def opening(self) -> str:
        """What the chat template writes in the policy's name before its first words, such as `<think>`."""
        return self._codec.opening

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Write the messages and the list of tools with the tokenizer's chat template."""
        told = with_instructions(messages, self._instructions)
        return self._codec.encode_prompt(with_tool_list(told, self._tool_list))

    def parse_calls(self, turn_text: str, finish_reason: FinishReason) -> tuple[ToolCall, ...]:
        """Read the calls of a turn, in order. What stands in the policy's thoughts is not a call."""
        del finish_reason
        spoken = turn_text.rpartition("</think>")[2]
        found: list[ToolCall] = []
        for match in _CALL.finditer(spoken):
            body = match[1].strip()
            if match[0].endswith(_CLOSE):
                found += read_calls(body, self._specs)
            else:
                found.append(ToolCall(tool="", text=body, problem=f"{_OPEN} without {_CLOSE} after it."))
        return tuple(found) or stray_calls(spoken, self._specs)

    def write_call(self, spec: ToolSpec, arguments: Mapping[str, Any]) -> str:
        """Return a call as the prompt asks for it."""
        return f"{_OPEN}\n{json.dumps({'name': spec.name, 'arguments': arguments}, ensure_ascii=False)}\n{_CLOSE}"

    def encode_results(self, texts: Sequence[str]) -> list[list[int]]:
        """Write the answers to a turn's calls as tool messages, then the opening of the policy's next message."""
        return self._frames.encode([self._codec.neutralise(text) for text in texts])

    def encode_text(self, text: str) -> list[int]:
        """Encode text that no policy sampled, without adding anything to it."""
        return self._codec.encode_text(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self._codec.decode(token_ids)

    def _check_listing(self) -> None:
        template, chat = self._codec.template, [{"role": "user", "content": "question"}]
        listed, plain = (template.text(chat, has_tools=has_tools) for has_tools in (True, False))
        for name in self._specs:
            if listed.count(name) <= plain.count(name):
                raise ConfigError(
                    f"The chat template must list the tools, but writes nothing of {name!r}. Set `rollout=default`, "
                    "whose prompt tells of them itself, or `rollout.chat_format.tool_list=system`, or use a tokenizer "
                    "whose template takes tools."
                )
