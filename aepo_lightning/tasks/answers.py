"""Accepted answers as they stand in the rows of people: texts, numbers, lists, and what wraps them."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real

from aepo_lightning.errors import ConfigError
from aepo_lightning.tasks.paths import BrokenRuleError

_TARGET = "target"
"""Where Search-R1 keeps its answers: `{"target": ["Paris", "Paris, France"]}`."""
_MOST_DIGITS = 25
"""Numbers that would be longer stay in exponent notation."""

_RULE = "be a text, a number or a list of them"


def check_answer_pattern(pattern: str | None) -> None:
    """Refuse a regular expression that finds no answer.

    Args:
        pattern: Its first group is the answer proper. None takes all.

    Raises:
        ConfigError: If it is broken or has no group.
    """
    if pattern is None:
        return
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"`answer_pattern` must be a regular expression, but got {pattern!r}: {error}.") from error
    if not num_groups:
        raise ConfigError(f"`answer_pattern` must have a group, but got {pattern!r}. Put the answer in parentheses.")


def answer_proper(answer: str, pattern: str | None) -> str:
    """Return what the first group of a pattern finds in an answer; all of it without a pattern.

    Raises:
        BrokenRuleError: If the pattern finds nothing.
    """
    if pattern is None:
        return answer
    match = re.search(pattern, answer)
    if match is None or match.group(1) is None:
        raise BrokenRuleError(f"match {pattern!r}")
    return match.group(1).strip()


def read_answers(value: object) -> tuple[str, ...]:
    """Return the accepted answers of one row as texts; blank and missing ones are left out.

    Args:
        value: A text, a number (of numpy and torch, too), a list of those, or a mapping that has them in `target`.
            None and not-a-number mean that nothing was written there. A number that is whole has no decimal point:
            5.0 becomes `5`.

    Raises:
        BrokenRuleError: If it is anything else, a truth value or infinite.
    """
    return tuple(answer for answer in _texts(value) if answer.strip())


def _texts(value: object) -> list[str]:
    if isinstance(value, Mapping) and _TARGET in value:
        value = value[_TARGET]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    plain = getattr(value, "tolist", None)  # numpy and torch
    if plain is not None:
        return _texts(plain())
    if isinstance(value, bool):
        raise BrokenRuleError(f'{_RULE}, such as "yes" or "no" in place of a truth value')
    if isinstance(value, Real | Decimal):
        return _number(value)
    if isinstance(value, Mapping):
        raise BrokenRuleError(f"{_RULE}; a field inside it is named with a dot")
    raise BrokenRuleError(_RULE)


def _number(value: Real | Decimal) -> list[str]:
    """Return a number as people write it, or nothing for not-a-number."""
    if isinstance(value, Integral):
        return [str(int(value))]
    if isinstance(value, Fraction):
        return [str(value)]
    if math.isnan(value):
        return []
    if math.isinf(value):
        raise BrokenRuleError(f"{_RULE}, and a number must be finite")
    exact = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    text = str(int(exact)) if exact == exact.to_integral_value() else format(exact, "f")
    return [text if len(text) <= _MOST_DIGITS else str(value)]
