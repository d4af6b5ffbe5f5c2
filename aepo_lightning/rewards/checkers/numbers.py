"""Plain numbers in answers, and the characters that they are written with."""

import re
from fractions import Fraction

_WRITTEN = "\uff0d\uff0b\uff0e\uff0c\uff05\uff04\u2212\u2010\u2011\u2012\u2013"
_FULL_WIDTH = "".join(chr(0xFF10 + digit) for digit in range(10))
_ASCII = str.maketrans(_FULL_WIDTH + _WRITTEN, "0123456789-+.,%$-----")
_MOST_CHARS = 1000
_PLAIN = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,4})?")


def to_ascii(text: str) -> str:
    """Return a text with full-width digits, dashes and other signs of numbers in ASCII; the rest stays."""
    return text if text.isascii() else text.translate(_ASCII)


def plain_number(text: str) -> Fraction | None:
    """Return the exact value of a text that is a number and nothing else, or None.

    Args:
        text: Such as `-1,234.50`, `.5`, `1e-3` or U+2212 and a digit. Commas must stand between thousands.
    """
    written = to_ascii(text.strip())
    if len(written) > _MOST_CHARS or not _PLAIN.fullmatch(written):
        return None
    mantissa = re.split("[eE]", written)[0]
    return Fraction(written.replace(",", "")) if any(each.isdigit() for each in mantissa) else None
