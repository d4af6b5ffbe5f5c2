"""Multiple choice: letters, the texts that they stand for, and sentences that name a letter."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.extraction import without_text_command
from aepo_lightning.rewards.typed import typed_words

_MOST_CHARS = 2000
_MARKUP = re.compile(r"\*\*|__|[$`\"]|\\(?:boxed|textbf|textit|mathrm|mathbf)\b|\\[()]")
_LETTER = r"[(\[{]*[A-Za-z][)\]}]*[.:]?"
_BETWEEN = r"(?: ?[,;/&+] ?(?:and |or )?| (?:and|or) | ?(?=[(\[]))"
_LETTERS = rf"{_LETTER}(?:{_BETWEEN}{_LETTER})*"
_NAMED = re.compile(
    r"(?:so |therefore,? |thus,? )?(?:(?:the|my|its) )?(?:(?:correct|final|best|right) )*"
    r"(?:answer|choice|option)s?(?: ?(?:is|are))?(?: ?:)? ?(?:(?:option|choice)s? )?"
    rf"(?<![A-Za-z])(?P<letters>{_LETTERS})(?P<rest>[ ,;-].*)?",
    re.IGNORECASE,
)
_LISTED = re.compile(_LETTERS)
_RUN = re.compile("[A-Z]{2,}")
_LABELLED = re.compile(r"[(\[{]?(?P<letter>[A-Za-z])[)\]}.:]+ ?(?P<rest>\S.*)")
_WORD_AFTER = re.compile(r"[-,.;:(]|(?:is|are|because|since|as)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    """Right if the answer names exactly the choices of an accepted one.

    A choice is named by its letter (`B`, `(B)`, `B.`, `option B`, `The answer is B`), by letter and text
    (`B. Paris`), or by its text alone; several by letters with commas, `and` or, in capitals and in order, nothing
    between them. A letter that is a word of a sentence (`A dog`, `I think so`) names nothing. Letter and text of two
    choices contradict each other and name none.

    The accepted answer is letters or the text of a choice; if it is neither, the texts are compared.
    """

    is_immediate: ClassVar[bool] = True

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether the choices of one of the accepted answers were made."""
        return matches_any(claim, lambda answer, gold: is_same_choice(answer, gold, claim.choices))


def is_same_choice(answer: str, gold: str, choices: Sequence[str] = ()) -> bool:
    """Tell whether an answer names the same choices as an accepted one.

    Args:
        answer: What was answered.
        gold: An accepted answer: letters, or the text of a choice.
        choices: The texts in the order of their letters; empty if they are not known.
    """
    wanted = named_choices(gold, choices)
    if not wanted:
        words = typed_words(gold)
        return bool(words) and typed_words(answer) == words
    return named_choices(answer, choices) == wanted


def named_choices(text: str, choices: Sequence[str] = ()) -> frozenset[str]:
    """Return the letters of the choices that a text names, in capitals. Empty if it names none, or is not clear.

    Args:
        text: An answer, or an accepted one.
        choices: The texts in the order of their letters; empty if they are not known.
    """
    if len(text) > _MOST_CHARS:
        return frozenset()
    ascii_like = text if text.isascii() else unicodedata.normalize("NFKC", text)
    plain = _MARKUP.sub("", without_text_command(ascii_like))
    plain = " ".join(plain.split()).strip("'")
    allowed = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    for read in (_listed, _by_text, _labelled, _named):
        letters = read(plain, choices)
        if letters:
            return frozenset(letters) if set(letters) <= set(allowed) else frozenset()
    return frozenset()


def _listed(text: str, choices: Sequence[str]) -> str:
    """Return the letters of a text that consists of them."""
    bare = text.rstrip(".") or text
    if _RUN.fullmatch(bare):  # of a run in order each letter is one; others are words
        in_order = all(left < right for left, right in pairwise(bare))
        return bare if in_order and len(bare) <= (len(choices) or len(bare)) else ""
    return _letters_of(text) if _LISTED.fullmatch(text) else ""


def _by_text(text: str, choices: Sequence[str]) -> str:
    """Return the letter of the only choice with this text."""
    if not choices:
        return ""
    words = typed_words(text)
    same = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if typed_words(choice) == words]
    return same[0] if words and len(same) == 1 else ""


def _labelled(text: str, choices: Sequence[str]) -> str:
    """Return the letter before a text, unless the text is that of another choice."""
    found = _LABELLED.fullmatch(text)
    if found is None:
        return ""
    letter = found["letter"].upper()
    of_text = _by_text(found["rest"], choices)
    return letter if of_text in ("", letter) else "?"


def _named(text: str, choices: Sequence[str]) -> str:
    """Return the letters that a sentence says are the answer."""
    found = _NAMED.fullmatch(text)
    if found is None:
        return ""
    letters, rest = _letters_of(found["letters"]), (found["rest"] or "").strip()
    if not rest:
        return letters
    if found["letters"][-1] in ".:)]}":
        return _labelled(f"{letters}. {rest}", choices) if len(letters) == 1 else letters
    return letters if _WORD_AFTER.match(rest) else ""


def _letters_of(text: str) -> str:
    words = re.sub("[^A-Za-z]+", " ", text).split()
    return "".join(word for word in words if len(word) == 1).upper()
