"""Mathematical equivalence: what is decided in place, what worker processes say, and what happens when they do not."""

import asyncio

import pytest

from aepo_lightning.contracts.checker import AnswerChecker, Claim, Outcome
from aepo_lightning.errors import ConfigError
from aepo_lightning.processes.errors import BrokenCallError, CannotSendError
from aepo_lightning.rewards.checkers import MathEquivalence, math_equivalence
from tests.support.extras import needs

needs("math_verify", "math")

TOWER = "9^{9^{9^{9^9}}}"
ENDLESS = r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}"
PATIENT = 100.0
"""Seconds within which ordinary claims end on any machine."""


def claim(answer, *golds):
    return Claim(question="?", golds=golds, answer=answer)


class Calls:
    """Stands for the worker processes."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def prepare(self):
        return None

    async def value(self, golds, answer, _memory_limit_mb):
        self.asked.append((*golds, answer))
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def calls(monkeypatch):
    def set_up(*answers):
        stub = Calls(*answers)
        monkeypatch.setattr(math_equivalence, "_calls", stub)
        monkeypatch.setattr(math_equivalence, "_cannot_start", [])
        return stub

    return set_up


@pytest.mark.parametrize(
    ("answer", "gold", "is_right"),
    [
        ("5", "5", True),
        (" $5.0$ ", "5", True),
        ("1,000", "1000", True),
        ("\uff15", "5", True),
        ("\u22125", "-5", True),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left( 3, 4 \right)", "(3,4)", True),
        (r"\text{Evelyn}.", "evelyn", True),
        ("6", "5", False),
        ("silent", "listen", False),
        ("6:30", "2:10", False),
        ("x", "x", True),
    ],
)
def test_what_needs_no_mathematics_never_travels(calls, answer, gold, is_right):
    stub = calls()
    found = asyncio.run(MathEquivalence()(claim(answer, gold)))
    assert (found.outcome, found.is_correct, stub.asked) == (Outcome.SCORED, is_right, [])


@pytest.mark.parametrize(
    ("answer", "gold"), [("1 2", "12"), ("X", "x"), ("0.33", "0.3333"), ("Ab", "aB"), ("x_1", "x1")]
)
def test_what_looks_alike_travels(calls, answer, gold):
    stub = calls(("different", ""))
    assert not asyncio.run(MathEquivalence()(claim(answer, gold))).is_correct
    assert stub.asked == [(gold, answer)]


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        ("{" * 20 + "x" + "}" * 20, "{{x}}"),
        (r"\sqrt{{{{((((x+1))))}}}}", r"\sqrt{{((x+1))}}"),
        ("((x))", "((x))"),
        ("(((x)+1)+2)", "(((x)+1)+2)"),
        ("(((x))+1)", "(((x))+1)"),
        (r"\{\{\{1\}\}\}", r"\{\{\{1\}\}\}"),
        (r"\left(\left(\left(x\right)\right)\right)", r"\left(\left(\left(x\right)\right)\right)"),
        ("(((x)", "(((x)"),
        ("({(x)})", "({(x)})"),
    ],
)
def test_of_brackets_that_stand_directly_in_one_another_two_travel(calls, answer, sent):
    stub = calls(("different", ""))
    asyncio.run(MathEquivalence()(claim(answer, "y+1")))
    assert stub.asked == [("y+1", sent)]


def test_nothing_to_compare(calls):
    calls()
    checker = MathEquivalence()
    assert isinstance(checker, AnswerChecker)
    assert checker.keeps_deadline
    assert asyncio.run(checker(claim("5"))).outcome is asyncio.run(checker(claim("5", " "))).outcome is Outcome.UNSCORED
    assert asyncio.run(checker(claim(" ", "5"))).outcome is Outcome.SCORED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 3001, "has 3,001 characters, but at most 3,000"),
        ("x" * (1 << 17), "has 131,072 characters"),
        ("(" * 100 + "x" + ")" * 100, "is nested deeper than 40"),
        (r"\frac{1}{" * 50, "is nested deeper than 40"),
    ],
)
def test_what_no_process_should_see_is_unscored_and_leaves_other_answers_to_compare(calls, text, problem):
    checker = MathEquivalence(max_chars=3000)
    stub = calls(("equal", ""), ("different", ""))
    unscored = asyncio.run(checker(claim(text, "x+1")))
    assert (unscored.outcome, stub.asked) == (Outcome.UNSCORED, [])
    assert problem in unscored.reason
    assert asyncio.run(checker(claim("1+x", text, "x+1"))).is_correct
    assert problem in asyncio.run(checker(claim("1+x", text, "x+2"))).reason
    assert asyncio.run(checker(claim(text, text))).is_correct


def test_of_long_prose_the_end_is_compared(calls):
    stub = calls(("different", ""))
    found = asyncio.run(MathEquivalence(max_chars=20)(claim("we think about it " * 10_000 + "and x = 5", "5")))
    assert (found.outcome, stub.asked) == (Outcome.SCORED, [("5", "k about it and x = 5")])


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (MemoryError(), "it needed more than 1024 MB"),
        (RecursionError("too deep"), "it raised RecursionError: too deep"),
    ],
)
def test_failures_are_verdicts(calls, error, problem):
    calls(error)
    found = asyncio.run(MathEquivalence()(claim("x+1", "x+2")))
    assert (found.outcome, found.reason) == (Outcome.UNSCORED, f"The answer was not compared: {problem}.")


def test_a_process_that_ended_is_replaced_once(calls):
    gone = BrokenCallError("its process ended.")
    calls(gone, ("equal", ""), gone, gone)
    assert asyncio.run(MathEquivalence()(claim("x+1", "1+x"))).is_correct
    assert "its process ended" in asyncio.run(MathEquivalence()(claim("x+1", "1+x"))).reason


def test_a_library_that_cannot_be_loaded_is_not_tried_again(calls):
    stub = calls(CannotSendError("ImportError: antlr4"))
    reasons = [asyncio.run(MathEquivalence()(claim("x+1", "1+x"))).reason for _ in range(3)]
    assert all("ImportError: antlr4" in reason for reason in reasons)
    assert len(stub.asked) == 1


@pytest.mark.parametrize("name", ["time_limit_s", "memory_limit_mb", "max_chars", "num_workers"])
def test_limits_must_let_something_through(name):
    with pytest.raises(ConfigError, match=f"`{name}` must be positive and finite, but got 0"):
        MathEquivalence(**{name: 0.0 if name == "time_limit_s" else 0})


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(math_equivalence, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"math-verify, but it is not installed\. .* 'aepo-lightning\[math\]'"):
        MathEquivalence()


def compared(*pairs, limit=PATIENT):
    async def run():
        return await asyncio.gather(*(MathEquivalence(time_limit_s=limit)(claim(*pair)) for pair in pairs))

    return asyncio.run(run())


def test_a_hang_costs_its_own_claim_and_nothing_else():
    async def run():
        patient, hasty = MathEquivalence(time_limit_s=PATIENT), MathEquivalence(time_limit_s=0.3)
        ordinary = [patient(claim("2x+2", "2(x+1)")), patient(claim("x+3", "x+4")), patient(claim(TOWER, "5"))]
        return await asyncio.gather(hasty(claim(ENDLESS, "5")), *ordinary)

    hang, right, wrong, tower = asyncio.run(run())
    assert (hang.outcome, hang.score) == (Outcome.UNSCORED, 0.0)
    assert hang.reason == "The answer was not compared: it took longer than 0.3 s."
    assert (right.is_correct, wrong.is_correct, wrong.outcome) == (True, False, Outcome.SCORED)
    assert "more than 20,000 digits" in tower.reason


RIGHT = [
    (r"\frac{1}{2}", "0.5"),
    (r"2\sqrt2", r"\sqrt{8}"),
    ("(x+1)^2", "x^2+2x+1"),
    ("1 - e^{-1}", r"1 - \frac{1}{\mathrm{e}}"),
    ("50", r"50\%"),
    ("0.5", r"50\%"),
    ("5 cm", "5"),
    ("The answer is 42.", "42"),
    ("So\n$x = 42$\nas said", "42"),
    ("\\begin{pmatrix}\n1\\\\2\n\\end{pmatrix}", r"\begin{pmatrix} 1\\ 2 \end{pmatrix}"),
    (r"x \in [1,2]", "[1,2]"),
    ("3.14159265", r"\pi"),
    ("2,1", r"\{1, 2\}"),
    (r"90^\circ", "90"),
]
WRONG = [
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),  # both are 0 to six decimals
    (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
    (r"\frac{1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}"),
    (r"1 + \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}"),
    (r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n"),
    ("3x + 4y + 14=0", "3*x-1*y+13=0"),
    ("2021", r"\pm 2021"),
    ("1:00", "12:00"),
    (r"5000\%", r"50\%"),
    ("2.0000101", "2"),
    ("There are 42 and 43", "42"),
    (r"\frac{1}{", "4"),
    ("(1,2]", "(1,2)"),
    ("", "5"),
]
BEYOND = ["(10^{9})!", r"\binom{10^8}{10^7}", r"\sin(10^{10^{10}})", "2^{100000000}", r"7^{7^{7^7}} \mod 10"]


@pytest.mark.slow
def test_verdicts_over_what_others_reported():
    """Math-Verify's issues 2, 14, 25, 37, 59, 60, 63 and 65, and conventions of the field."""
    assert [pair for pair, found in zip(RIGHT, compared(*RIGHT), strict=True) if not found.is_correct] == []
    found = compared(*WRONG)
    assert [pair for pair, each in zip(WRONG, found, strict=True) if each.is_correct or not each.is_scored] == []
    pairs = [(text, "5") for text in BEYOND]
    assert [each.outcome for each in compared(*pairs)] == [Outcome.UNSCORED] * len(pairs)


@pytest.mark.slow
def test_a_process_without_memory_says_so():
    small = MathEquivalence(time_limit_s=PATIENT, memory_limit_mb=60)
    found = asyncio.run(small(claim("(x+1)^2", "x^2+2x+2")))
    assert found.outcome is Outcome.UNSCORED  # an error of its own, or the end of its process
    assert compared(("(x+1)^2", "x^2+2x+1"))[0].is_correct
