"""Exact match where a judge has the last word: what is the same as it stands, but for how it is written down."""

import re
import unicodedata

from aepo_lightning.rewards.checkers.numbers import plain_number, to_ascii

_PAIRS = (("**", "**"), ('"', '"'), ("'", "'"), ("`", "`"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("$", "$"))
_LEFT_MARKS = frozenset(left[0] for left, _ in _PAIRS)
_MOST_PAIRS = 3
_MOST_COMPOSED = 4096
"""Characters: to sort the accents of a longer text may take minutes."""
_END_MARKS = " \t\r\n.,;\u3002\uff0c\uff1b"
_FORMULA = re.compile(r"[\\^_={}<>|]")


def is_same_form(answer: str, gold: str) -> bool:
    """Tell whether two answers are the same number, or the same text but for case, white space and marks around it.

    Whatever this accepts every reader would accept. Formulas keep their case and all signs in them, so that `x^2` is
    not `x_2`, and `5!` is not 5.

    Args:
        answer: What was answered.
        gold: An accepted answer.
    """
    given, wanted = exact_form(answer), exact_form(gold)
    if (number := plain_number(wanted)) is not None:
        return plain_number(given) == number
    return bool(wanted) and given == wanted


def exact_form(text: str) -> str:
    """Return a text composed (NFC), without marks around it, white space squeezed, in lower case unless a formula."""
    if not text.isascii():
        text = to_ascii(unicodedata.normalize("NFC", text) if len(text) <= _MOST_COMPOSED else text)
    normal = " ".join(text.split()).rstrip(_END_MARKS)
    for _ in range(_MOST_PAIRS):
        if normal[:1] not in _LEFT_MARKS:
            break
        for left, right in _PAIRS:
            if len(normal) > len(left + right) and normal.startswith(left) and normal.endswith(right):
                normal = normal[len(left) : -len(right)].strip().rstrip(_END_MARKS)
    return normal if _FORMULA.search(normal) else normal.casefold()


def labelled_answer(text: str, *labels: str) -> str:
    """Return what stands behind the last of some labels at the start of a line, or the whole text if none does.

    Args:
        text: Such as `Explanation: ...`, `Exact Answer: ...` and `Confidence: ...` in a line each.
        *labels: Such as `Exact Answer`. Case and Markdown's asterisks do not count; a colon, also a full-width one,
            must follow.
    """
    if ":" not in text and "\uff1a" not in text:
        return text
    named = "|".join(map(re.escape, labels))
    found = re.findall(rf"^[ \t*_#>-]*(?:{named})[ \t*_]*[:\uff1a]([^\n]*)", text, re.IGNORECASE | re.MULTILINE)
    return found[-1].strip(" \t\r*_") if found else text
