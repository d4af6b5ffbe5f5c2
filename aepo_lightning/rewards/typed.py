"""Answers compared as what they are: numbers as numbers, choices as choices, everything else as words.

SQuAD's normalisation drops punctuation, so that `3.5` is `35`, `-5` is `5`, and of `+` nothing is left. Here a number
keeps its value wherever it stands in a text (`1,000` is `1000.0`, `1/2` is `0.5`), a group of digits with signs between
(`10:30`, `2-1`) stays one, a letter with signs behind it (`C++`, `A-`) keeps them, and an answer that consists of what
is dropped elsewhere (`A`, `+`, `the`) is taken as it is. Texts without any of that compare as in `f1.py`.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal, TypeAlias

from aepo_lightning.rewards.f1 import VERDICTS, bag_f1, exact_match, normalize_answer, split_words, token_f1

Comparison: TypeAlias = Literal["words", "typed"]
"""How two short answers are compared: as words without punctuation, or numbers as numbers and choices as choices."""

_NEEDS_CARE = re.compile(r"[0-9]|[a-z][+#-](?![a-z])")
_DASHES = str.maketrans("\u2212\u2010\u2011\u2012\u2013", "-----")
_LEFT_EDGE = "([{<\"'`$\u20ac\u00a3\u00a5*_~=#&@\\/|;:!?"
_RIGHT_EDGE = ")]}>\"'`$\u20ac\u00a3\u00a5*_~=#&@\\/|;:!?.,%-"
_CURRENCY = re.compile("^([+-])[$\u20ac\u00a3\u00a5]")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?")
_FRACTION = re.compile(r"[+-]?[0-9]+/[0-9]*[1-9][0-9]*")
_DIGIT_GROUP = re.compile(r"[0-9]+(?:[.,:/-][0-9]+)+")
_WITH_UNIT = re.compile(r"([+-]?[0-9]*[.,:/-][0-9][0-9.,:/-]*)([a-z%\u00b0].*)")
_SIGNED_LETTERS = re.compile(r"[a-z]{1,2}(?:\+\+?|#|-)")
_MOST_CHARS = 64
"""Numbers are shorter; longer runs of digits are words."""
_CHOICE = re.compile(r"[(\[{]?([a-z])[)\]}]?[.:)]?")
_CHOSEN = re.compile(r"[(\[{]?([a-z])[)\]}.:]+\s+\S.*", re.DOTALL)


def typed_words(text: str) -> list[str]:
    """Return the words of an answer that count, numbers in one spelling.

    Args:
        text: Any answer.

    Returns:
        The words in lower case, in order. Empty for blank text only.
    """
    lowered = text.lower().translate(_DASHES)
    if not _NEEDS_CARE.search(lowered):
        words = normalize_answer(text).split()
    else:
        words = [word for piece in lowered.split() for word in _words(piece)]
    # Of articles alone the articles are left, of punctuation alone all of it.
    return words or split_words(lowered, keep_articles=True) or lowered.split()


def typed_match(prediction: str, answer: str) -> bool:
    """Tell whether two answers are the same: every answer that is not blank is the same as itself.

    Args:
        prediction: What the policy answered.
        answer: One accepted answer.

    Returns:
        True for the same choice, or for the same words.
    """
    if (is_chosen := _compare_choices(prediction, answer)) is not None:
        return is_chosen
    words = typed_words(prediction)
    return bool(words) and words == typed_words(answer)


def typed_f1(prediction: str, answer: str) -> float:
    """Return the F1 score of the bags of words of two answers, as `token_f1` with numbers and choices compared as such.

    Args:
        prediction: What the policy answered.
        answer: One accepted answer. If it is a single letter, an answer such as `(B)` or `B. Paris` is the choice B.

    Returns:
        Harmonic mean of precision and recall over words, in [0, 1]; 0 or 1 for a choice.
    """
    if (is_chosen := _compare_choices(prediction, answer)) is not None:
        return float(is_chosen)
    predicted, accepted = typed_words(prediction), typed_words(answer)
    if predicted != accepted and VERDICTS & {" ".join(predicted), " ".join(accepted)}:
        return 0.0
    return bag_f1(predicted, accepted)


RULES: Mapping[Comparison, tuple[Callable[[str, str], float], Callable[[str, str], bool]]] = {
    "words": (token_f1, exact_match),
    "typed": (typed_f1, typed_match),
}
"""By comparison: how far an answer agrees with an accepted one, in [0, 1], and whether the two are the same."""


def _compare_choices(prediction: str, answer: str) -> bool | None:
    """Return whether a choice was made rightly, or None if the accepted answer or the policy's is no choice."""
    wanted = _CHOICE.fullmatch(answer.strip().lower())
    if wanted is None:
        return None
    given = prediction.strip().lower()
    made = _CHOICE.fullmatch(given) or _CHOSEN.fullmatch(given)
    return None if made is None else made.group(1) == wanted.group(1)


def _words(piece: str) -> list[str]:
    """Return the words of what stands between spaces, in lower case."""
    core = _CURRENCY.sub(r"\1", piece.lstrip(_LEFT_EDGE).rstrip(_RIGHT_EDGE))
    if (number := _number(core)) is not None:
        return [number]
    if _SIGNED_LETTERS.fullmatch(signed := piece.strip("([{<\"'`)]}>;:!?.,")):
        return [signed]
    if len(core) <= _MOST_CHARS and (with_unit := _WITH_UNIT.fullmatch(core)):
        amount, unit = with_unit.groups()
        if (number := _number(amount)) is not None:
            return [number, *split_words(unit)]
    return split_words(piece)


def _number(text: str) -> str | None:
    """Return the one spelling of a number or of a group of digits, or None if it is neither."""
    if not text or len(text) > _MOST_CHARS:
        return None
    if _DECIMAL.fullmatch(text) and any(character.isdigit() for character in text.partition("e")[0]):
        return str(Fraction(text.replace(",", "")))
    if _FRACTION.fullmatch(text):
        return str(Fraction(text))
    return re.sub("[.,:/]", "-", text) if _DIGIT_GROUP.fullmatch(text) else None
