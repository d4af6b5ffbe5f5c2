"""Pairs of answers for `benchmarks.rewards`: ordinary ones with their verdicts, and hostile ones.

Ordinary pairs are made like the answers of MATH: mostly numbers, fractions and roots, some terms, tuples, intervals,
sets and matrices; a third of them are wrong. None is decided by its text alone. Hostile expressions nest, build towers
of powers, break off, are a megabyte long, or ask for a sum or an integral that never ends.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

GOLD = "14"
"""What hostile expressions are compared with. None of them is that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An answer, the accepted one, and whether they are the same."""

    answer: str
    gold: str
    is_right: bool


def ordinary_pairs(number: int, seed: int = 0) -> Iterator[Pair]:
    """Yield pairs that take mathematics."""
    draw = random.Random(seed)
    kinds, weights = zip(*_ORDINARY, strict=True)
    for _ in range(number):
        is_right = draw.random() < 2 / 3
        gold, answer = draw.choices(kinds, weights)[0](draw, 0 if is_right else draw.randrange(1, 4))
        yield Pair(answer=answer, gold=gold, is_right=is_right)


def _fraction(draw: random.Random, off: int) -> tuple[str, str]:
    over, under, times = draw.randrange(1, 90), draw.choice([4, 8, 20, 25]), draw.randrange(2, 6)
    decimal, multiple = f"{over / under + off:.3f}", rf"\frac{{{times * over + off}}}{{{times * under}}}"
    if draw.random() < 0.5:
        return f"{over / under:.3f}", multiple
    return rf"\frac{{{over}}}{{{under}}}", draw.choice([decimal, multiple])


def _root(draw: random.Random, off: int) -> tuple[str, str]:
    outside, inside = draw.randrange(2, 12), draw.choice([2, 3, 5, 6, 7, 10, 11, 13])
    return rf"{outside}\sqrt{{{inside}}}", rf"\sqrt{{{outside * outside * inside + off}}}"


def _angle(draw: random.Random, off: int) -> tuple[str, str]:
    under = draw.choice([3, 4, 6, 12])
    return rf"\frac{{\pi}}{{{under}}}", rf"\frac{{{2 + off}\pi}}{{{2 * under}}}"


def _term(draw: random.Random, off: int) -> tuple[str, str]:
    one, other = draw.randrange(1, 9), draw.randrange(1, 9)
    return f"x^2 + {one + other}x + {one * other}", f"(x+{one})(x+{other + off})"


def _line(draw: random.Random, off: int) -> tuple[str, str]:
    slope, height = draw.randrange(2, 9), draw.randrange(1, 9)
    return f"{slope}x + {height}", f"{height + off} + {slope}x"


def _tuple(draw: random.Random, off: int) -> tuple[str, str]:
    one, other = draw.randrange(10, 40), draw.randrange(1, 9)
    return rf"\left({one}, \frac{{{other}}}{{2}}\right)", f"({one}, {other / 2 + off:g})"


def _interval(draw: random.Random, off: int) -> tuple[str, str]:
    start, width = draw.randrange(-9, 9), draw.randrange(1, 9)
    return rf"[{start}, {start + width})", rf"[ {start} ,\frac{{{2 * (start + width + off)}}}{{2}})"


def _set(draw: random.Random, off: int) -> tuple[str, str]:
    one, two, three = draw.sample(range(1, 50), 3)
    return f"{one}, {two}, {three}", f"{three}, {one}, {two + 50 * off}"


def _matrix(draw: random.Random, off: int) -> tuple[str, str]:
    one, two, three = (str(draw.randrange(1, 9)) for _ in range(3))
    gold = rf"\begin{{pmatrix}} {one} \\ {two} \\ {three} \end{{pmatrix}}"
    return gold, rf"\begin{{pmatrix}}{one}\\{two}\\\frac{{{2 * int(three) + off}}}{{2}}\end{{pmatrix}}"


def _unit(draw: random.Random, off: int) -> tuple[str, str]:
    number = draw.randrange(2, 500)
    return str(number), rf"{number + off} \text{{ cm}}"


def _power(draw: random.Random, off: int) -> tuple[str, str]:
    exponent = draw.randrange(3, 12)
    return str(2**exponent), f"2^{{{exponent + off}}}"


_Maker = Callable[[random.Random, int], tuple[str, str]]
_ORDINARY: list[tuple[_Maker, float]] = [
    (_fraction, 0.34), (_root, 0.12), (_angle, 0.08), (_term, 0.06), (_line, 0.06), (_tuple, 0.08),
    (_interval, 0.06), (_set, 0.06), (_matrix, 0.04), (_unit, 0.05), (_power, 0.05),
]  # fmt: skip


def hostile_answers(number: int, num_endless: int, seed: int = 0) -> list[str]:
    """Return expressions that are made to break what reads them.

    Args:
        number: How many.
        num_endless: How many of them ask for something that never ends; each costs a process for its limit.
        seed: Of the choice.
    """
    draw = random.Random(seed)
    made = [draw.choice(_ENDLESS)(draw) for _ in range(num_endless)]
    made += [draw.choice(_HOSTILE)(draw) for _ in range(number - num_endless)]
    draw.shuffle(made)
    return made


def _tower(draw: random.Random) -> str:
    return "".join(f"{draw.randrange(3, 10)}^{{" for _ in range(4)) + "9" + "}" * 4


def _nested(draw: random.Random) -> str:
    opening, closing = draw.choice(
        [(r"\frac{1}{1+", "}"), (r"\sqrt{2+", "}"), ("(", ")"), ("{", "}"), (r"\boxed{", "}")]
    )
    depth = draw.choice([20, 60, 1000])
    return opening * depth + str(draw.randrange(15, 100)) + closing * depth


def _broken(draw: random.Random) -> str:
    whole = r"\left( \frac{1}{2}, \begin{pmatrix} 1 & 2 \\ 3 & \sqrt[3]{4} \end{pmatrix} \right]"
    cut = draw.randrange(1, len(whole))
    return whole[:cut] + draw.choice(["", "}", "\\", "$", "\\frac", str(draw.randrange(1000))])


def _long(draw: random.Random) -> str:
    piece = draw.choice(["7", "x+", r"\frac{1}{", "$", "{", "1,", "\\", " a", "(x+1)"])
    return piece * ((1 << 20) // len(piece))


def _huge(draw: random.Random) -> str:
    number = draw.randrange(7, 12)
    return draw.choice(
        [f"(10^{{{number}}})!", rf"\binom{{10^{number}}}{{10^6}}", f"3^{{10^{{{number}}}}}", "(((9!)!)!)!"]
    )


_HOSTILE: list[Callable[[random.Random], str]] = [
    _tower,
    _tower,
    _nested,
    _nested,
    _broken,
    _broken,
    _huge,
    _huge,
    _long,
]
_ENDLESS: list[Callable[[random.Random], str]] = [
    lambda draw: rf"\sum_{{k=1}}^{{10^{{{draw.randrange(8, 12)}}}}} \frac{{1}}{{k^2}}",
    lambda draw: rf"\int_0^{draw.randrange(1, 9)} x^x \sin(\cos(x^3)) dx",
    lambda draw: f"(a+b+c+d+e+f)^{{{draw.randrange(40, 80)}}}",
]
