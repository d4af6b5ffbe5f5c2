"""Numbers compare as numbers, choices as choices, and every answer is the same as itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.rewards import PaperReward
from aepo_lightning.rewards.f1 import exact_match, token_f1
from aepo_lightning.rewards.typed import typed_f1, typed_match, typed_words


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("5", "5.0"),
        ("5.00", "5"),
        ("1,000", "1000"),
        ("$1,000.50", "1000.5"),
        ("-$5", "-5"),
        ("\u22125", "-5"),
        ("+5", "5"),
        ("0.5", "1/2"),
        (".5", "0.50"),
        ("1e3", "1000"),
        ("(3.5)", "3.5"),
        ("50%", "50"),
        ("\\$5.", "5"),
        ("3.5 km", "3.5km"),
        ("10:30 am", "10:30am"),
        ("A", "A"),
        ("(a)", "A"),
        ("A.", "A"),
        ("B) Paris", "B"),
        ("A. the first", "A"),
        ("+", "+"),
        ("the", "the"),
        ("C++", "c++"),
        ("The Beatles", "beatles"),
        ("2020/01/05", "2020-01-05"),
    ],
)
def test_these_are_the_same(prediction, answer):
    assert typed_match(prediction, answer)
    assert typed_f1(prediction, answer) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("50", "5.0"),
        ("35", "3.5"),
        ("5", "-5"),
        ("12", "1/2"),
        ("1030", "10:30"),
        ("21", "2-1"),
        ("B", "A"),
        ("A", "B"),
        ("(B)", "A"),
        ("B. Paris", "A"),
        ("-", "+"),
        ("", "+"),
        ("C", "C++"),
        ("C#", "C++"),
        ("A-", "A+"),
        ("35km", "3.5km"),
        ("no", "yes"),
        ("1" * 5000, "1"),
        ("1e999999999", "1"),
    ],
)
def test_these_are_not(prediction, answer):
    assert not typed_match(prediction, answer)
    assert typed_f1(prediction, answer) == 0.0


def test_a_number_keeps_its_value_inside_a_text():
    # "3.5", "km" against "35", "km": one common word of two and two.
    assert typed_f1("3.5 km", "35 km") == 0.5
    # "12", "apples" against "12": 2 * 1 * (1/2) / (3/2) = 2/3.
    assert typed_f1("12 apples", "12") == pytest.approx(2 / 3)


WORDS = st.lists(st.from_regex("[A-Za-z]{2,6}[0-9]?[,.;]?", fullmatch=True), min_size=1, max_size=5).map(" ".join)


@given(WORDS, WORDS)
def test_texts_without_numbers_and_choices_compare_as_words(prediction, answer):
    if exact_match(answer, answer) and exact_match(prediction, prediction):
        assert typed_f1(prediction, answer) == token_f1(prediction, answer)
        assert typed_match(prediction, answer) == exact_match(prediction, answer)


@given(st.text(min_size=1).filter(str.strip))
def test_every_text_is_the_same_as_itself(text):
    assert typed_words(text)
    assert typed_match(text, text)
    assert typed_f1(text, text) == 1.0


def question(*answers):
    return Question(question_id="q", messages=(Message(role="user", content="?"),), answers=answers)


@given(st.text(min_size=1).filter(str.strip))
def test_a_gold_has_a_problem_if_and_only_if_giving_it_earns_less_than_all(answer):
    reward = PaperReward()
    quick = reward.gold_problem(question(answer), answer)
    slow = PaperReward(match="words").gold_problem(question(answer), answer)
    assert not (quick and not slow), "whatever earns all as words earns it as what it is"


@pytest.mark.parametrize("answer", ["1}^N", "{", "so \\boxed{C}", "x </answer> y", "<answer>"])
def test_what_no_box_can_hold_is_a_problem(answer):
    assert "earns" in PaperReward().gold_problem(question(answer), answer)


@pytest.mark.parametrize(("answer", "is_paid"), [("A", False), ("+", False), ("3.5", True), ("Paris", True)])
def test_the_released_rule_cannot_pay_what_normalisation_drops(answer, is_paid):
    assert (PaperReward(match="words").gold_problem(question(answer), answer) is None) is is_paid
    assert PaperReward().gold_problem(question(answer), answer) is None


def test_a_verdict_is_not_half_right():
    assert (typed_f1("yes", "yes it is 5"), typed_f1("yes", "yes")) == (0.0, 1.0)
    assert typed_f1("it is", "yes it is 5") > 0.0
