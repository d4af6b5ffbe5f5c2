"""GAIA's quasi-exact match."""

import math
import re
import string
from dataclasses import dataclass
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Verdict
from aepo_lightning.rewards.checkers.accepted import matches_any
from aepo_lightning.rewards.checkers.numbers import to_ascii

_UNITS = str.maketrans("", "", "$%,")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SEPARATOR = re.compile("[,;]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GaiaMatch:
    """Right if the answer is an accepted one by the rules of GAIA's public scorer. All rule, no judge.

    An accepted number is compared by value, after `$`, `%` and commas were taken out of the answer. An accepted text
    with a comma or semicolon is a list: as many elements, each compared with its counterpart, numbers by value, texts
    without white space and case but with their punctuation. Any other text is compared without white space, case and
    punctuation.

    Departures, each of which takes a wrong verdict from the scorer: a number that cannot be read equals none (there it
    is infinite, and equals an accepted `inf`); texts of which nothing is left are compared as they are; a dash of
    Unicode counts as minus.

    References:
        GAIA, arXiv:2311.12983, section 3.2, and the `scorer.py` of its public leaderboard.
    """

    is_immediate: ClassVar[bool] = True

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers was given."""
        return matches_any(claim, _is_same)


def _is_same(answer: str, gold: str) -> bool:
    if _number(gold) is not None or not _SEPARATOR.search(gold):
        return _is_same_value(answer, gold, _PUNCTUATION)
    given, wanted = _SEPARATOR.split(answer), _SEPARATOR.split(gold)
    return len(given) == len(wanted) and all(_is_same_value(*pair, {}) for pair in zip(given, wanted, strict=True))


def _is_same_value(answer: str, gold: str, dropped: dict[int, int | None]) -> bool:
    if (number := _number(gold)) is not None:
        return _number(to_ascii(answer).translate(_UNITS)) == number
    given, wanted = ("".join(text.split()).lower() for text in (answer, gold))
    left, wanted_left = given.translate(dropped), wanted.translate(dropped)
    return left == wanted_left if left or wanted_left else given == wanted


def _number(text: str) -> float | None:
    """Return what Python reads as a finite number, or None."""
    try:
        number = float(to_ascii(text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
