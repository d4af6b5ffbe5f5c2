"""One row as a conversation: the spellings in which conversations are published.

    {"messages": [{"role": "user", "content": "..."}, ...]}        OpenAI, with `tool_calls`, `tool_call_id`
    {"conversations": [{"from": "human", "value": "..."}, ...]}    ShareGPT, with `function_call` and `observation`
    {"instruction": "...", "input": "...", "output": "..."}        one question and one answer

Each may have a `system` text beside it. Tools that a row lists are not read: prompts list those of the run.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aepo_lightning.tasks.conversations.conversation import (
    ChatMessage,
    Conversation,
    Fault,
    Role,
    UnusableRowError,
    WrittenCall,
)
from aepo_lightning.tasks.prompts import is_unicode

_CALL = "call"
_ROLES: Mapping[str, Role | str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), _CALL),
}
_LISTS = ("messages", "conversations")


def read_conversation(row: Mapping[str, Any], messages_field: str | None = None) -> Conversation:
    """Return the messages of a row.

    Args:
        row: Its fields.
        messages_field: The field with the list of messages. None takes `messages`, `conversations`, or `instruction`
            with `input` and `output`, whichever is there.

    Raises:
        UnusableRowError: If there is no such list, or a message cannot be read.
    """
    items = _messages(row, messages_field)
    system = row.get("system")
    told = [ChatMessage(role="system", text=system)] if isinstance(system, str) and system.strip() else []
    messages = _with_calls([_message(item) for item in items])
    has_own = any(message.role == "system" for message in messages)
    return tuple(messages) if has_own else (*told, *messages)


def _messages(row: Mapping[str, Any], field: str | None) -> Sequence[Any]:
    names = _LISTS if field is None else (field,)
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None and field is None and isinstance(row.get("instruction"), str):
        asked = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": row.get("output")}]
    if not isinstance(found, list) or not found:
        raise UnusableRowError(Fault.NO_MESSAGES, f"it has {sorted(map(str, row))}")
    return found


def _message(item: Any) -> ChatMessage:
    """Read one message; one that is a call alone comes as an assistant without text."""
    fields: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
    name = fields.get("role", fields.get("from"))
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise UnusableRowError(Fault.UNKNOWN_ROLE, name if isinstance(item, Mapping) else item)
    content = fields.get("content", fields.get("value"))
    if role == _CALL:
        return ChatMessage(role="assistant", text="", calls=_calls_in_text(_text(content)))
    calls = _calls(fields) if role == "assistant" else ()
    if content is None and calls:
        content = ""
    text = _text(content)
    if role == "assistant":
        return ChatMessage(role="assistant", text=_thoughts(fields) + text, calls=calls)
    call_id = fields.get("tool_call_id")
    own: Any = role
    return ChatMessage(role=own, text=text, call_id=call_id if isinstance(call_id, str) else "")


def _text(content: Any) -> str:
    """Return a text, or the texts of a list of parts as they stand after one another."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in content)
    if not isinstance(content, str) or not is_unicode(content):
        raise UnusableRowError(Fault.NOT_TEXT, content)
    return content


def _thoughts(fields: Mapping[str, Any]) -> str:
    """Return thoughts that stand in a field of their own as a policy writes them, or nothing."""
    found = next((fields[name] for name in ("reasoning_content", "reasoning") if fields.get(name)), "")
    return f"<think>\n{_text(found).strip()}\n</think>\n\n" if found else ""


def _calls(fields: Mapping[str, Any]) -> tuple[WrittenCall, ...]:
    """Return the calls of an OpenAI message, also in the older form with one."""
    listed = fields.get("tool_calls") or ([fields["function_call"]] if fields.get("function_call") else [])
    if not isinstance(listed, list):
        raise UnusableRowError(Fault.BROKEN_CALL, listed)
    return tuple(_call(each) for each in listed)


def _calls_in_text(text: str) -> tuple[WrittenCall, ...]:
    """Return the call, or the list of calls, that a ShareGPT message is."""
    found = _json(text)
    return tuple(_call(each) for each in (found if isinstance(found, list) else [found]))


def _call(item: Any) -> WrittenCall:
    fields: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
    inner = fields.get("function")
    named: Mapping[str, Any] = inner if isinstance(inner, Mapping) else fields
    name, arguments = named.get("name"), named.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise UnusableRowError(Fault.BROKEN_CALL, item)
    # Parquet gives every call the arguments of all, those that it does not have as nulls.
    given = {key: value for key, value in arguments.items() if value is not None}
    call_id = fields.get("id")
    return WrittenCall(name=name, arguments=given, call_id=call_id if isinstance(call_id, str) else "")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableRowError(Fault.BROKEN_CALL, text) from None


def _with_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Put messages that are calls alone to the assistant's message before them."""
    joined: list[ChatMessage] = []
    for message in messages:
        before = joined[-1] if joined else None
        is_call = message.role == "assistant" and bool(message.calls) and not message.text
        if before is not None and before.role == "assistant" and is_call:
            calls = (*before.calls, *message.calls)
            joined[-1] = ChatMessage(role="assistant", text=before.text, calls=calls)
        else:
            joined.append(message)
    return joined
