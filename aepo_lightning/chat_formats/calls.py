"""Calls that a policy wrote as JSON, in the spellings that models have learnt, and why others are none.

The arguments of a call are never made up: those that stand where nobody looks for them make it a call with a problem.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aepo_lightning.chat_formats.json_text import load_json
from aepo_lightning.contracts.tool import ToolCall, ToolSpec

_NAMES = ("name", "function", "tool", "tool_name", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "params", "kwargs", "input", "tool_input", "action_input")
_WRAPPERS = ("function", "function_call", "tool_call", "tool")
_BESIDE = frozenset({"id", "type", "index", "call_id", "tool_call_id"})
"""What may stand beside a call without being one of its arguments."""
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.DOTALL)
_MARK = re.compile(
    r"<\|tool_calls?\|?>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=\w+>|<function_calls?>|<tool_use>|<invoke\b"
    r"|<\uff5ctool\u2581calls\u2581begin\uff5c>"
)
"""What other models have learnt to write before a call."""
_MAX_QUOTED = 80


def read_calls(text: str, specs: Mapping[str, ToolSpec]) -> tuple[ToolCall, ...]:
    """Read what stands between the tags of a call: one call, or a list of them.

    Args:
        text: What stands there, stripped.
        specs: Of the tools that are there, by their names.

    Returns:
        The calls, one at least. What cannot be read has `problem` set.
    """
    if found := _FUNCTION.match(text):
        return (_from_markup(text, found[1], found[2], specs.get(found[1])),)
    try:
        written = load_json(text)
    except ValueError as error:
        return (ToolCall(tool="", text=text, problem=f"the call is not JSON: {getattr(error, 'msg', error)}."),)
    if isinstance(written, list) and len(written) > 1:
        return tuple(_from_json(json.dumps(each, ensure_ascii=False), each, specs) for each in written)
    return (_from_json(text, written[0] if isinstance(written, list) and written else written, specs),)


def stray_calls(text: str, specs: Mapping[str, ToolSpec]) -> tuple[ToolCall, ...]:
    """Read the calls of a turn that has none in the tags of its format.

    A turn that is one piece of JSON and names a tool is a call (Llama 3 writes them so). A mark that other models put
    before their calls makes a call with a problem, unless the turn answers the question.

    Args:
        text: What the policy wrote after its thoughts.
        specs: Of the tools that are there, by their names.
    """
    spoken = text.strip()
    if spoken[:1] in ("{", "["):
        found = read_calls(spoken, specs)
        if any(call.tool in specs for call in found):
            return found
    mark = None if "<answer>" in spoken else _MARK.search(spoken)
    return () if mark is None else (_broken(spoken, "", f"{mark[0]} begins no call here."),)


def unwrapped(arguments: dict[str, Any], name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that was written where only its arguments belong.

    Args:
        arguments: What was written.
        name: Of the tool.
        properties: Of the tool's parameters.

    Returns:
        What the call holds as arguments if it is one to this tool, else `arguments` as they are.
    """
    own = {key: value for key, value in arguments.items() if key in properties}
    is_bare = len(arguments) == 1 and next(iter(arguments)) in _ARGUMENTS
    inner = _wrapped(arguments) or arguments
    if own or not (is_bare or any(inner.get(key) == name for key in _NAMES)):
        return arguments
    call = _from_json("", {"name": name, **arguments} if is_bare else inner, {})
    return arguments if call.problem or call.arguments is None else dict(call.arguments)


def _from_json(text: str, call: Any, specs: Mapping[str, ToolSpec]) -> ToolCall:
    while isinstance(call, dict) and (inner := _wrapped(call)) is not None:
        call = inner
    if not isinstance(call, dict):
        return ToolCall(tool="", text=text, problem='the call must be an object with a "name".')
    key = next((key for key in _NAMES if isinstance(call.get(key), str) and call[key]), None)
    if key is None:
        (only,) = call if len(call) == 1 else (None,)
        if only not in specs:
            return ToolCall(tool="", text=text, problem='the call must be an object with a "name".')
        return _with_arguments(text, str(only), call[only])
    return _named(text, call[key], {other: value for other, value in call.items() if other != key})


def _wrapped(call: dict[str, Any]) -> dict[str, Any] | None:
    if isinstance(call.get("name"), str):
        return None
    return next((call[key] for key in _WRAPPERS if isinstance(call.get(key), dict)), None)


def _named(text: str, name: str, others: Mapping[str, Any]) -> ToolCall:
    """Find the arguments among what stands beside a name."""
    filled = [key for key in _ARGUMENTS if not _is_nothing(others.get(key))]
    if len(filled) > 1:
        both = " and ".join(f'"{key}"' for key in filled)
        return _broken(text, name, f'{both} both hold something. Write "arguments" alone.')
    if filled:
        return _with_arguments(text, name, others[filled[0]])
    strange = [key for key in others if key not in _ARGUMENTS and key not in _BESIDE and not _is_nothing(others[key])]
    if strange:
        listed = ", ".join(f'"{key}"' for key in strange)[:_MAX_QUOTED]
        return _broken(text, name, f'arguments must stand inside "arguments", but {listed} stand beside the name.')
    return ToolCall(tool=name, text=text, arguments={})


def _is_nothing(value: Any) -> bool:
    return value is None or value == {} or (isinstance(value, str) and not value.strip())


def _with_arguments(text: str, name: str, value: Any) -> ToolCall:
    for _ in range(2):  # some models write the arguments as JSON inside JSON, some of these twice
        if isinstance(value, str):
            try:
                value = load_json(value)
            except ValueError:
                break
    if not isinstance(value, dict):
        return _broken(text, name, '"arguments" must be an object.')
    return ToolCall(tool=name, text=text, arguments=value)


def _broken(text: str, name: str, problem: str) -> ToolCall:
    return ToolCall(tool=name[:_MAX_QUOTED], text=text, problem=problem)


def _from_markup(text: str, name: str, body: str, spec: ToolSpec | None) -> ToolCall:
    """Read `<function=NAME><parameter=KEY>VALUE</parameter></function>`, as some coding models write calls."""
    written = _PARAMETER.findall(body)
    if not written and body.strip():
        return _broken(text, name, "what stands inside <function=...> must be <parameter=...> blocks.")
    properties = {} if spec is None else spec.parameters.get("properties", {})
    arguments = {key: _typed(value, properties.get(key, {})) for key, value in written}
    return ToolCall(tool=name, text=text, arguments=arguments)


def _typed(value: str, schema: Any) -> Any:
    """Return a value as its schema wants it: text as it stands, anything else as JSON."""
    kinds: str | Sequence[str] = schema.get("type", "string") if isinstance(schema, Mapping) else "string"
    if "string" in ([kinds] if isinstance(kinds, str) else kinds):
        return value
    try:
        return load_json(value)
    except ValueError:
        return value
