r"""Repairs text in which `\b` and `\f` of LaTeX commands were read as escapes: a backspace before `oxed`.

A file that was written without doubling the backslash of `\boxed` holds a backspace in its place, and `\frac` a form
feed. A backspace means nothing in a text, so every one that a letter follows is repaired; a form feed may end a page
and is repaired before the commands of mathematics that begin with `f` only. Tabs and line ends stay what they are.
"""

import re
from dataclasses import replace

from aepo_lightning.contracts.question import Question

_BROKEN = re.compile("\x08(?=[a-zA-Z])|\x0c(?=rac\\b|rac\\{|orall\\b|lat\\b|rown\\b)")
_MEANT = {"\x08": "\\b", "\x0c": "\\f"}


def repair_text(text: str) -> str:
    r"""Return the text with `\b` and `\f` in place of the control characters that were made of them."""
    if "\x08" not in text and "\x0c" not in text:
        return text
    return _BROKEN.sub(lambda match: _MEANT[match.group()], text)


def repair_question(question: Question) -> Question:
    """Return the question with messages and answers repaired: the same object if there is nothing to repair."""
    contents = [message.content for message in question.messages]
    fixed, answers = [repair_text(text) for text in contents], tuple(map(repair_text, question.answers))
    if fixed == contents and answers == question.answers:
        return question
    messages = tuple(
        replace(message, content=content) for message, content in zip(question.messages, fixed, strict=True)
    )
    return replace(question, messages=messages, answers=answers)
