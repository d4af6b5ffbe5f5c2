"""The far side of `MathEquivalence`: what calls `math-verify`, in worker processes only.

The library has no limit that holds (a signal that long integer arithmetic never sees) and takes a few unequal pairs
for equal. Here numbers that would not fit anywhere are recognised before they are computed, the caller kills what
hangs, and a positive verdict about two numbers is checked once more.
"""

import logging
import math
import re
import resource
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aepo_lightning.errors import boundary
from aepo_lightning.processes.child import is_fork_server

EQUAL, DIFFERENT, BEYOND = "equal", "different", "beyond"
"""What comes back: `BEYOND` if the limits are too narrow to tell."""

_MOST_DIGITS = 20_000
_FLOAT_DIGITS = 300.0
_FACTORIALS = frozenset({"factorial", "factorial2", "subfactorial", "gamma", "binomial"})
_NEAR = 1e-3
_PLACES = (1.3711, 2.2139, 1.7193, 2.8319, 1.1237)
_NEAR_LIMIT = 0.8
_MARKED = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed\b")
_PERCENT = re.compile(r"\s*\\?%\s*$")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,} +[A-Za-z]{2,}(?![A-Za-z}])")
"""Two words in a row that stand in no command."""
_CONSTANT = re.compile(r"\\(?:mathrm|operatorname|text|mathit|rm)\s*\{\s*([eid])\s*\}")

_prediction = ["LL"]
"""How far ANTLR's parsers look; SLL does not look at the whole context."""


class _BeyondError(Exception):
    """An expression of which the value has more digits than anybody reads."""


def compare(golds: Sequence[str], answer: str, memory_limit_mb: int) -> tuple[str, str]:
    """Return `EQUAL`, `DIFFERENT` or `BEYOND`, and why.

    Args:
        golds: Accepted answers in LaTeX or plain notation.
        answer: What was answered.
        memory_limit_mb: Of this process.

    Raises:
        MemoryError: If that is not enough.
    """
    limit = memory_limit_mb << 20
    if resource.getrlimit(resource.RLIMIT_AS)[0] != limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    _forget_peak()
    try:
        read = _readings(answer)
        if any(_is_equal(gold, answer, read) for gold in golds):
            return EQUAL, ""
    except _BeyondError as error:
        return BEYOND, str(error)
    # The library takes every exception for unequal, also those that say that there was no room left.
    if _peak() > _NEAR_LIMIT * limit:
        raise MemoryError(f"its process came near {memory_limit_mb} MB.")
    return DIFFERENT, "" if any(map(_is_formula, read)) else "It was not read as mathematics."


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _forget_peak() -> None:
    """Have the system measure the largest size anew, where it can: an earlier claim may have needed more."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _readings(text: str) -> list[Any]:
    """Return what a text may mean, but for a percent sign at its end: a formula, and what prose says the answer is."""
    import math_verify

    formula = math_verify.LatexExtractionConfig()
    spelled = _PERCENT.sub("", _CONSTANT.sub(r"\1", " ".join(text.split())))
    is_marked = bool(_MARKED.search(spelled))
    found = [] if is_marked else _parsed(f"${spelled}$", [formula])
    if is_marked or PROSE.search(spelled):
        said = math_verify.ExprExtractionConfig(try_extract_without_anchor=False)
        found += _parsed(_CONSTANT.sub(r"\1", text), [formula, said])
    for each in found:
        _digits(each)
    return found


def _parsed(text: str, kinds: list[Any]) -> list[Any]:
    import math_verify

    for _prediction[:] in ("SLL",), ("LL",):
        found: list[Any] = math_verify.parse(text, kinds, parsing_timeout=None)
        if any(map(_is_formula, found)):
            break
    # What the library cut in two with one of its replacements means something else.
    is_cut = any(isinstance(each, str) and each.count("{") != each.count("}") for each in found)
    return [] if is_cut and text.count("{") == text.count("}") else found


def _is_equal(gold: str, answer: str, read: list[Any]) -> bool:
    """Return whether an answer, as it was read, is an accepted one. Of one percent sign both readings count."""
    sides = [(_readings(gold), _PERCENT.search(gold)), (read, _PERCENT.search(answer))]
    if bool(sides[0][1]) != bool(sides[1][1]):
        sides = [(_with_hundredths(side) if sign else side, sign) for side, sign in sides]
    (wanted, _), (given, _) = sides
    return any(_is_same(left, right) for left in wanted for right in given)


def _with_hundredths(read: list[Any]) -> list[Any]:
    return [*read, *(each / 100 for each in read if _is_formula(each) and getattr(each, "is_number", False))]


def _is_formula(read: Any) -> bool:
    return not isinstance(read, str)


def _is_same(wanted: Any, given: Any) -> bool:
    import math_verify

    found: list[bool | None] = []
    with boundary(lambda _: None):  # of what the algebra cannot do the library still knows whether it looks the same
        found.append(_compare_values(wanted, given) if _is_formula(wanted) and _is_formula(given) else None)
    if found and found[0] is not None:
        return found[0]
    return bool(math_verify.verify(wanted, given, timeout_seconds=None))


def _compare_values(wanted: Any, given: Any) -> bool | None:
    """Return whether two terms are equal where their values tell, in a fraction of the time that a proof takes.

    The library also rounds numbers to six decimals, whatever their size, so that two small ones are equal to it.
    """
    import sympy

    if not all(isinstance(each, sympy.Expr) and not each.is_Symbol for each in (wanted, given)):
        return None
    if wanted.free_symbols != given.free_symbols:
        return None
    left, right = (_value(each) for each in (wanted, given))
    if left is None or right is None:
        return None
    if not abs(left - right) <= _NEAR * max(abs(left), abs(right)):
        return False
    return True if wanted.free_symbols and sympy.expand(wanted - given) == 0 else None


def _value(expression: Any) -> Any:
    """Return the value of a term with enough digits, at any size, or None for what has none.

    Symbols stand for numbers between 1 and 3 that are nothing special, the same ones each time.
    """
    symbols = sorted(expression.free_symbols, key=str)
    places = {symbol: _PLACES[index % len(_PLACES)] + index // len(_PLACES) for index, symbol in enumerate(symbols)}
    value = expression.doit().evalf(20, subs=places)
    return value if value.is_number and value.is_finite else None


def _digits(expression: Any) -> float:
    """Return about how many decimal digits the value of an expression has, at least 1.

    Raises:
        _BeyondError: If these are too many, there or in a part of it.
    """
    if isinstance(expression, str) or not hasattr(expression, "args"):
        return 1.0
    parts = [_digits(part) for part in expression.args]
    name = type(expression).__name__
    if getattr(expression, "is_Number", False):
        digits = _digits_of_number(expression)
    elif name == "Pow":
        digits = parts[0] * _at_most(expression.args[1], parts[1])
    elif name in _FACTORIALS:
        digits = parts[0] * _at_most(expression.args[0], parts[0])
    else:
        digits = max([*parts, 1.0])
    if digits > _MOST_DIGITS:
        raise _BeyondError(f"a number in it has more than {_MOST_DIGITS:,} digits.")
    return max(digits, 1.0)


def _at_most(expression: Any, digits: float) -> float:
    """Return the absolute value of a number, or the largest one with so many digits; a symbol counts as 1."""
    if expression.is_Number and digits < _FLOAT_DIGITS and expression.is_finite:
        return abs(float(expression))
    return 1.0 if expression.is_Symbol else 10.0 ** min(digits, _FLOAT_DIGITS)


def _digits_of_number(number: Any) -> float:
    if number.is_Rational:
        return max(int(number.p).bit_length(), int(number.q).bit_length()) * math.log10(2)
    if number.is_Float:
        _, _, exponent, num_bits = number._mpf_
        return float(abs(exponent + num_bits)) * math.log10(2)
    return 1.0


def _choose_prediction() -> None:
    """Have every parser predict as `_prediction` says: SLL is several times faster than LL, and fails or agrees."""
    from antlr4.atn.ParserATNSimulator import ParserATNSimulator, PredictionMode

    simulator: Any = ParserATNSimulator
    construct = simulator.__init__

    def construct_with_prediction(self: Any, *arguments: Any) -> None:
        construct(self, *arguments)
        self.predictionMode = PredictionMode[_prediction[0]]

    simulator.__init__ = construct_with_prediction


def _warm_up() -> None:
    """Read and compare a few formulas, so that every process forked from this one has the parser's tables."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    for gold, answer in _TYPICAL:
        _is_equal(gold, answer, _readings(answer))


_TYPICAL = (
    (r"\frac{\sqrt{3}}{2} x^2 + 1", r"1 + \dfrac{x^2 \sqrt3}{2}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(-\infty, 2]"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "x = 5"),
    ("1, 2, 3", "0.5"),
)

if is_fork_server():
    _choose_prediction()
    _warm_up()
