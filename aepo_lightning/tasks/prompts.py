"""Messages of a question."""

from collections.abc import Mapping

from aepo_lightning.contracts.question import Message
from aepo_lightning.tasks.paths import BrokenRuleError


def with_system(system_prompt: str, user_text: str) -> tuple[Message, ...]:
    """Return the messages of a question: the system prompt unless it is empty, then the user's text."""
    user = Message(role="user", content=user_text)
    return (Message(role="system", content=system_prompt), user) if system_prompt else (user,)


def check_text(text: str) -> str:
    r"""Return a text that can be written as UTF-8, and so tokenised and stored.

    Raises:
        BrokenRuleError: If it holds half of a surrogate pair, which JSON may spell (`\ud83d`) and no text has.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        rule = f"be text without half a surrogate pair (character {error.start + 1} is one)"
        raise BrokenRuleError(rule, value=text) from None
    return text


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8."""
    try:
        check_text(text)
    except BrokenRuleError:
        return False
    return True


def read_messages(value: object) -> tuple[Message, ...]:
    """Return messages from a list of mappings with a text `role` and `content`, or of `Message`s.

    Raises:
        BrokenRuleError: If one is something else, none is there, or the last is the assistant's.
    """
    if not isinstance(value, list | tuple) or not value:
        raise BrokenRuleError("be a non-empty list of messages")
    messages = []
    for position, each in enumerate(value):
        if not isinstance(each, Message):
            parts = each if isinstance(each, Mapping) else {}
            role, content = parts.get("role"), parts.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise BrokenRuleError("have a text role and content", f"[{position}]", each)
            each = Message(role=role, content=content)
        for text in (each.role, each.content):
            check_text(text)
        messages.append(each)
    if messages[-1].role == "assistant":
        raise BrokenRuleError("not end with the assistant, who would give the answer away", value=messages[-1].content)
    return tuple(messages)
