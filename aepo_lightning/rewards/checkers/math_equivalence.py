"""Mathematical equivalence by `math-verify`, which runs in worker processes that are killed when they hang."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from aepo_lightning.contracts.checker import Claim, Outcome, Verdict, best_of
from aepo_lightning.errors import ConfigError, boundary
from aepo_lightning.event_loop import CutOffError, Places, cut_off
from aepo_lightning.processes.calls import ProcessCalls
from aepo_lightning.processes.errors import BrokenCallError, CannotSendError, ProcessError
from aepo_lightning.rewards.checkers import math_worker
from aepo_lightning.rewards.checkers.accepted import NO_ANSWER, NO_GOLD, RIGHT, WRONG, accepted_answers
from aepo_lightning.rewards.checkers.numbers import plain_number, to_ascii
from aepo_lightning.rewards.extraction import without_text_command

_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_MOST_NESTED = 40
_BRACKET = re.compile(r"\\(?:left|right)?.|[(){}]", re.DOTALL)
_PAIRS = {"(": ")", "{": "}"}
_MARKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|(?<!\\)\$")
_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_CLOCK = re.compile("[0-9]{1,2}:[0-9]{2}")
_MOST_TRIES = 2
_calls = ProcessCalls(math_worker.compare)
_cannot_start: list[str] = []
"""Why no process can load the library, once that is known."""
_places: dict[int, Places] = {}
"""Of all checkers that have as many workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MathEquivalence:
    """Right if the answer is mathematically the same as an accepted one.

    Equal texts, plain numbers and words are compared in place; everything else goes to `math-verify` in a worker
    process. One that does not come back within its limit is killed with its process, and the claim is unscored: it
    counts neither as right nor as wrong, and the next claim gets another process.

    Attributes:
        time_limit_s: Of one claim in its process; the wait for a process does not count.
        memory_limit_mb: Of the address space of a process.
        max_chars: Of longer prose the end is looked at, where the answer stands. Longer formulas that are not equal as
            texts are unscored without a try, as are deeply nested ones.
        num_workers: Processes that work at the same time. None is one for each CPU.

    Raises:
        ConfigError: If a limit is not positive, or `math-verify` is not installed.
    """

    time_limit_s: float = 5.0
    memory_limit_mb: int = 1024
    max_chars: int = 2000
    num_workers: int | None = None
    keeps_deadline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through, and a missing library."""
        for name in ("time_limit_s", "memory_limit_mb", "max_chars", "num_workers"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"`{name}` must be positive and finite, but got {value}.")
        if find_spec("math_verify") is None:
            raise ConfigError(
                "`MathEquivalence` must have the package math-verify, but it is not installed. Install the extra: "
                "pip install 'aepo-lightning[math]'."
            )

    async def __call__(self, claim: Claim) -> Verdict:
        """Return whether one of the accepted answers was given; unscored if a limit was met."""
        golds = accepted_answers(claim)
        if not golds:
            return NO_GOLD
        if not claim.answer.strip():
            return NO_ANSWER
        if claim.answer in golds:
            return RIGHT
        given = self._end_of_prose(claim.answer)
        if problem := self._size_problem(given):
            return _unscored(problem)
        answer = _Written(given)
        compared = [answer.compare(_Written(gold)) for gold in golds]
        if any(compared):
            return RIGHT
        open_golds = [gold for gold, verdict in zip(golds, compared, strict=True) if verdict is None]
        if not open_golds:
            return WRONG
        return await self._compare(open_golds, given)

    async def _compare(self, golds: Sequence[str], answer: str) -> Verdict:
        """Return the verdict over the accepted answers that can be sent; the others leave it open."""
        problems = [self._size_problem(gold) for gold in golds]
        verdicts = [_unscored(problem) for problem in problems if problem]
        sent = [gold for gold, problem in zip(golds, problems, strict=True) if not problem]
        if sent:
            verdicts.append(await self._ask(sent, answer))
        return best_of(verdicts)

    def _end_of_prose(self, text: str) -> str:
        end = text[-self.max_chars :]
        return end if len(end) < len(text) and math_worker.PROSE.search(end) else text

    def _size_problem(self, text: str) -> str:
        if len(text) > self.max_chars:
            return f"an expression has {len(text):,} characters, but at most {self.max_chars:,} are looked at"
        if _nesting(text) > _MOST_NESTED:
            return f"an expression is nested deeper than {_MOST_NESTED} brackets"
        return ""

    async def _ask(self, golds: Sequence[str], answer: str) -> Verdict:
        if _cannot_start:
            return _unscored(_cannot_start[0])
        failures: list[Exception] = []
        for _ in range(_MOST_TRIES):
            failures.clear()
            with boundary(failures.append):
                return _verdict(*await self._call(golds, answer))
            if not isinstance(failures[0], BrokenCallError):  # which an earlier claim may have left behind
                break
        if isinstance(failures[0], CannotSendError):  # each further try would cost seconds
            _cannot_start[:] = [f"math-verify cannot be loaded ({failures[0]})"]
        return _unscored(self._describe(failures[0]))

    async def _call(self, golds: Sequence[str], answer: str) -> tuple[str, str]:
        num_workers = self.num_workers or os.cpu_count() or 1
        async with _places.setdefault(num_workers, Places(num_workers)).take():
            await _calls.prepare()
            wanted, given = [_prepared(gold) for gold in golds], _prepared(answer)
            work = _calls.value(wanted, given, self.memory_limit_mb)
            found: tuple[str, str] = await cut_off(work, self.time_limit_s, "math-verify")
            return found

    def _describe(self, error: Exception) -> str:
        if isinstance(error, CutOffError):
            return f"it took longer than {self.time_limit_s:g} s"
        if isinstance(error, MemoryError):
            return f"it needed more than {self.memory_limit_mb} MB"
        problem = str(error).rstrip(".")
        return problem if isinstance(error, ProcessError) else f"it raised {type(error).__name__}: {problem:.200}"


class _Written:
    """An expression in the spellings that can be compared without knowing mathematics."""

    def __init__(self, text: str) -> None:
        plain = _SPACE.sub("", _MARKS.sub(" ", without_text_command(to_ascii(text))).strip())
        self.text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", plain).rstrip(".")
        self.number = plain_number(self.text)
        self.is_words = bool(_WORDS.fullmatch(self.text) and _LONG_WORD.search(self.text))

    def compare(self, gold: "_Written") -> bool | None:
        """Return whether this is the same as an accepted answer, or None where that takes mathematics."""
        if self.text and self.text == gold.text:
            return True
        if self.number is not None and gold.number is not None:
            if self.number == gold.number:
                return True
            is_whole = self.number.denominator == gold.number.denominator == 1
            return False if is_whole else None  # decimals may be rounded
        if gold.is_words and self.is_words:
            return self.text.casefold() == gold.text.casefold()
        if _CLOCK.fullmatch(gold.text) and _CLOCK.fullmatch(self.text):
            return False  # the quotients of hours and minutes may be equal
        return None


def _prepared(text: str) -> str:
    """Return an expression as the parser gets it: in ASCII, and of brackets in brackets in brackets the inner two.

    The others mean nothing, and each multiplies the time that the parser takes: of twelve it needs half a minute.
    """
    plain = to_ascii(text)
    ends, opened = dict[int, int](), list[int]()
    for found in _BRACKET.finditer(plain):
        if found[0] in _PAIRS:
            opened.append(found.start())
        elif found[0] in ")}":
            if not opened or _PAIRS[plain[opened[-1]]] != found[0]:
                return plain
            ends[opened.pop()] = found.start()
    needless = set[int]()
    for start, end in ends.items():
        is_same = plain[start] == plain[start + 1] == plain[start + 2]
        if is_same and ends.get(start + 1) == end - 1 and ends.get(start + 2) == end - 2:
            needless |= {start, end}
    return "".join(each for place, each in enumerate(plain) if place not in needless)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth -= 1
    return deepest


def _verdict(found: str, reason: str) -> Verdict:
    if found == math_worker.EQUAL:
        return RIGHT
    if found == math_worker.BEYOND:
        return _unscored(reason.rstrip("."))
    return Verdict(reason=f"{WRONG.reason} {reason}".rstrip())


def _unscored(problem: str) -> Verdict:
    return Verdict(outcome=Outcome.UNSCORED, reason=f"The answer was not compared: {problem}.")
