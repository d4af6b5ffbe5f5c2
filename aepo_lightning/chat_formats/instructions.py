"""What a prompt says of the tools that are there: the system message of questions that bring none."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from aepo_lightning.contracts.question import Message
from aepo_lightning.contracts.tool import ToolSpec
from aepo_lightning.errors import ConfigError

SystemPrompt: TypeAlias = Literal["auto", "tools", "none"]
"""What a question without a system message gets: one that tells of the tools and the form of the answer, or none."""
ToolList: TypeAlias = Literal["template", "system"]
"""What lists the tools of JSON calls: the chat template or the system message."""

MIN_ENTRIES = 1000
"""Entries of a tokenizer that reads text. Smaller ones belong to policies that are made for one procedural task."""
_EXAMPLES: Mapping[str, Any] = {"number": 2.5, "integer": 2, "boolean": True, "array": [], "object": {}, "null": None}
_ACT = "Answer the question step by step. Reason inside <think> and </think> before every action."
_CALL = (
    "You may call the tools below, one at a time. Write a call exactly as shown, with your own values. Its output "
    "follows between <result> and </result>; read it before you go on, and call tools as often as you need."
)
_JSON_CALLS = (
    "You may call the tools that are listed inside <tools> and </tools> as JSON schemas. Write each call as one JSON "
    "object inside tags, with your own values, and end your message when the calls are written; the next message "
    "brings their output."
)
_JSON_CALL = '<tool_call>\n{"name": "the tool", "arguments": {"each parameter": "its value"}}\n</tool_call>'
_ANSWER = "When you know the answer, write <answer> a short explanation, then \\boxed{the exact answer} </answer>."


def is_written(system_prompt: SystemPrompt, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether questions without a system message get one.

    Args:
        system_prompt: `auto` writes it for tokenizers with at least `MIN_ENTRIES` entries.
        tokenizer: Of the policy.

    Raises:
        ConfigError: If the choice is unknown.
    """
    if system_prompt not in ("auto", "tools", "none"):
        raise ConfigError(f"`system_prompt` must be auto, tools or none, but got {system_prompt!r}.")
    return system_prompt == "tools" or (system_prompt == "auto" and len(tokenizer) >= MIN_ENTRIES)


def with_instructions(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """Put a system message first, unless the messages have their own or there is nothing to say."""
    own = any(message.role == "system" for message in messages)
    return tuple(messages) if own or not text else (Message(role="system", content=text), *messages)


def with_tool_list(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """Put a list of tools after the system message, or in its place, unless there is nothing to list."""
    if not text:
        return tuple(messages)
    place = next((place for place, message in enumerate(messages) if message.role == "system"), None)
    if place is None:
        return (Message(role="system", content=text), *messages)
    own = Message(role="system", content=f"{messages[place].content}\n\n{text}")
    return (*messages[:place], own, *messages[place + 1 :])


def json_tool_list(schemas: Sequence[Mapping[str, Any]], clean: Callable[[str], str]) -> str:
    """Return the tools and how they are called by JSON, for chat templates that list none.

    Args:
        schemas: Of the tools. Without any, nothing is said.
        clean: Makes tags in the tools' own words harmless.
    """
    if not schemas:
        return ""
    lines = (clean(json.dumps(schema, ensure_ascii=False)) for schema in schemas)
    return "\n".join((_JSON_CALLS, "<tools>", *lines, "</tools>", _JSON_CALL))


def answer_instructions() -> str:
    """Return how to reason and answer, for formats whose template lists the tools."""
    return f"{_ACT} {_ANSWER}"


def tag_instructions(specs: Sequence[ToolSpec], clean: Callable[[str], str]) -> str:
    """Return how to reason, call the tools by tags, and answer.

    Args:
        specs: Tools that are there. Without any, no call is mentioned.
        clean: Makes tags in the tools' own words harmless.
    """
    if not specs:
        return answer_instructions()
    return "\n\n".join((f"{_ACT} {_CALL}", *(_describe(spec, clean) for spec in specs), _ANSWER))


def takes_text(spec: ToolSpec) -> bool:
    """Return whether text alone is a call: no other parameter is needed, and this one is text."""
    schema = spec.parameters.get("properties", {}).get(spec.text_parameter, {})
    return "string" in _types(schema, "string") and set(spec.parameters.get("required", ())) <= {spec.text_parameter}


def takes_only_text(spec: ToolSpec) -> bool:
    """Return whether a call is nothing but text, so that text which looks like JSON is text, too."""
    return takes_text(spec) and set(spec.parameters.get("properties", {})) <= {spec.text_parameter}


def example_call(spec: ToolSpec) -> str:
    """Return a call as it is written in tags."""
    properties = spec.parameters.get("properties", {})
    if not properties:
        inside = ""
    elif takes_only_text(spec):
        inside = f" {spec.text_parameter} "
    else:
        inside = example_arguments(spec)
    return f"<{spec.name}>{inside}</{spec.name}>"


def example_arguments(spec: ToolSpec) -> str:
    """Return arguments of a call as JSON."""
    properties = spec.parameters.get("properties", {})
    return json.dumps({name: _example(name, schema) for name, schema in properties.items()}, ensure_ascii=False)


def _example(name: str, schema: Mapping[str, Any]) -> Any:
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    return _EXAMPLES.get(_types(schema, "string")[0], name)


def _types(schema: Any, otherwise: str) -> list[str]:
    found = schema.get("type", otherwise) if isinstance(schema, Mapping) else otherwise
    return [found] if isinstance(found, str) else list(found)


def _describe(spec: ToolSpec, clean: Callable[[str], str]) -> str:
    lines = [f"{spec.name}: {clean(spec.description.strip())}" if spec.description.strip() else f"{spec.name}:"]
    required = spec.parameters.get("required", ())
    for name, schema in spec.parameters.get("properties", {}).items():
        told = schema.get("description", "") if isinstance(schema, Mapping) else ""
        kind = " or ".join(_types(schema, "any"))
        optional = "" if name in required else ", optional"
        lines.append(clean(f"- {name} ({kind}{optional}): {told}".rstrip(": ")))
    return "\n".join((*lines, f"Call: {example_call(spec)}"))
