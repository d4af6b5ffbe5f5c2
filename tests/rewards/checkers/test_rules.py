"""Rules on short texts: examples by hand, and agreement with slow references."""

import asyncio

import pytest

from aepo_lightning.contracts.checker import AnswerChecker, Claim, Outcome
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards import checkers
from aepo_lightning.rewards.checkers import (
    BrowseCompMatch,
    ExactMatch,
    GaiaMatch,
    HLEMatch,
    MultipleChoice,
    SubstringAccuracy,
    TokenF1,
    XBenchMatch,
)
from aepo_lightning.rewards.checkers.exact_form import labelled_answer
from aepo_lightning.rewards.checkers.numbers import plain_number
from tests.support import rule_reference
from tests.support.slow import first_quick

RULES = [ExactMatch, TokenF1, SubstringAccuracy, MultipleChoice, GaiaMatch, XBenchMatch, HLEMatch, BrowseCompMatch]


def verdict(checker, answer, *golds, choices=()):
    return asyncio.run(checker(Claim(question="?", golds=golds, answer=answer, choices=choices)))


def score(checker, answer, *golds):
    return verdict(checker, answer, *golds).score


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_tells_what_cannot_be_compared_from_what_is_wrong(rule):
    checker = rule()
    assert isinstance(checker, AnswerChecker)
    assert checker.is_immediate
    assert rule.__name__ in checkers.__all__
    assert verdict(checker, "x").outcome is verdict(checker, "x", "", " \n").outcome is Outcome.UNSCORED
    assert (verdict(checker, " ", "x").outcome, score(checker, " ", "x")) == (Outcome.SCORED, 0.0)
    right, wrong = verdict(checker, "Paris", "Rome", "paris", ""), verdict(checker, "Berlin", "Rome")
    assert (right.score, right.is_correct, right.reason) == (1.0, True, "")
    assert (wrong.score, wrong.is_correct) == (0.0, False)
    assert wrong.reason


PIECES = ["9", "a ", "{", "\\text{", "**", "(A), ", "the answer is ", "$", "1,", "\u0301\u0323", "\n", '"']


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", first_quick([1 << 15, 1 << 20]))
def test_long_texts_are_compared_at_once(rule, size):
    for piece in PIECES:
        long = piece * (size // len(piece))
        assert not verdict(rule(), long, "Paris").is_correct
        assert not verdict(rule(), "Paris", long).is_correct


@pytest.mark.parametrize("number", first_quick([500, 10_000]))
def test_they_agree_with_slow_references(number):
    rules = [
        (ExactMatch(), rule_reference.exact),
        (SubstringAccuracy(), rule_reference.contains),
        (GaiaMatch(), rule_reference.gaia),
        (TokenF1(), rule_reference.f1),
    ]

    async def compare():
        for answer, gold in rule_reference.generated_pairs(number, seed=number):
            for checker, reference in rules:
                found = await checker(Claim(question="", golds=(gold,), answer=answer))
                expected = float(reference(answer, gold)) if answer.strip() and gold.strip() else 0.0
                assert found.score == pytest.approx(expected), (checker, answer, gold)
                assert found.is_scored == bool(gold.strip())

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("answer", "golds", "f1", "acc"),
    [
        ("the Beatles band", ("Beatles",), 2 / 3, 1.0),
        ("red and blue", ("blue", "red and blue paint"), 6 / 7, 1.0),
        ("yes it is", ("yes",), 0.0, 1.0),
        ("in 2012", ("12",), 0.0, 1.0),
        ("3.5", ("35",), 1.0, 1.0),
    ],
)
def test_words(answer, golds, f1, acc):
    assert score(TokenF1(), answer, *golds) == pytest.approx(f1)
    assert score(SubstringAccuracy(), answer, *golds) == acc


@pytest.mark.usefixtures("without_type_checks")
def test_numbers_and_whole_words_on_request():
    assert score(TokenF1(comparison="typed"), "3.5", "35") == score(ExactMatch(comparison="typed"), "3.5", "35") == 0.0
    assert score(ExactMatch(comparison="typed"), "1,000", "1000.0") == 1.0
    assert score(SubstringAccuracy(whole_words=True), "in 2012", "12") == 0.0
    assert score(SubstringAccuracy(whole_words=True), "in the 12 days", "12") == 1.0
    for rule in (ExactMatch, TokenF1):
        with pytest.raises(ConfigError, match="`comparison` must be `words` or `typed`, but got 'fuzzy'"):
            rule(comparison="fuzzy")


@pytest.mark.parametrize(
    ("answer", "gold", "is_right"),
    [
        ("$1,234.50", "1234.5", True),
        ("17%", "17", True),
        ("1e3", "1000", True),
        ("\u22125", "-5", True),
        ("\uff15", "5", True),
        ("5 km", "5", False),
        ("nothing", "inf", False),
        ("nan", "nan", True),
        ("sea gull", "Seagull", True),
        ("St. Petersburg", "st petersburg", True),
        ("a, b; 3.0", "A;B,3", True),
        ("a, b", "b, a", False),
        ("a, b, c", "a, b", False),
        ("a., b", "a, b", False),  # in lists punctuation counts
        ("$5, 6%", "5, 6", True),
        ("!", "?", False),
        ("!!", "!!", True),
    ],
)
def test_gaia(answer, gold, is_right):
    assert verdict(GaiaMatch(), answer, gold).is_correct is is_right
    assert rule_reference.gaia(answer, gold) is is_right


@pytest.mark.parametrize(
    ("answer", "gold", "browsecomp", "hle", "xbench"),
    [
        ("Explanation: x\nExact Answer: **1,994**\nConfidence: 90%", "1994", True, True, False),
        ("\u6700\u7ec8\u7b54\u6848\uff1a1994", "1994", False, False, True),
        ("The Beatles", "Beatles", True, False, False),
        ('"Beatles."', "beatles", True, True, True),
        ("x^2", "x_2", True, False, False),
        ("5!", "5", True, False, False),
        (".5", "5", False, False, False),
        (".50", "0.5", True, True, True),
        ("$F$", "f", True, True, True),
        ("cafe\u0301", "caf\u00e9", True, True, True),
        ("(B)", "B", True, True, False),
        ("Answer: B. Paris", "B", False, True, False),
        ("A dog", "A", False, False, False),
    ],
)
def test_rules_before_a_judge(answer, gold, browsecomp, hle, xbench):
    found = [verdict(checker(), answer, gold).is_correct for checker in (BrowseCompMatch, HLEMatch, XBenchMatch)]
    assert found == [browsecomp, hle, xbench]


def test_the_last_labelled_line_counts():
    text = "Exact Answer: 1\r\n> **Exact answer**: 2 \r\nAnswer: 3"
    assert labelled_answer(text, "Exact Answer") == "2"
    assert labelled_answer(text, "Exact Answer", "Answer") == "3"
    assert labelled_answer(text, "Other") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("-1,234.50", -1234.5), (".5", 0.5), ("5.", 5), ("1e-2", 0.01), ("\uff0d\uff15", -5), (" 7\r\n", 7)]
    + [
        (text, None)
        for text in ("", ".", "-", "e5", "1,00", "1 2", "0x1", "1_0", "inf", "\u0665", "9" * 2000, "1e99999")
    ],
)
def test_plain_numbers(text, value):
    number = plain_number(text)
    assert number == value if value is None else float(number) == value
