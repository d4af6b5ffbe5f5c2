"""The answer as a term of a reward."""

import asyncio

import pytest

from aepo_lightning.contracts.checker import Claim, Outcome, Verdict
from aepo_lightning.contracts.question import Message, Question
from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.errors import ConfigError, DataError, RewardError
from aepo_lightning.rewards import AnswerTerm
from aepo_lightning.rewards.answer_term import _at_once
from aepo_lightning.rewards.checkers import TokenF1
from aepo_lightning.rollout import ScoringSettings
from tests.rewards.test_sum import both

MESSAGES = (Message(role="system", content="Be brief."), Message(role="user", content="Where?"))
RIGHT = r"<think>t</think><answer>\boxed{ NYC }</answer>"


def sample(text=RIGHT, golds=("NYC",), metadata=None):
    question = Question(question_id="q-7", messages=MESSAGES, answers=golds, metadata=metadata or {})
    return RewardInput(question=question, response_text=text)


def ask(term, *args, **fields):
    return asyncio.run(term(sample(*args, **fields)))


class Checks:
    """A checker that remembers what it was asked."""

    def __init__(self, verdict):
        self.verdict, self.claims = verdict, []

    async def __call__(self, claim):
        self.claims.append(claim)
        return self.verdict


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict(score=0.8, reason="Nearly."), (0.8, False, 0.8, True, "Nearly.")),
        (Verdict(score=1.0, is_correct=True), (1.0, True, 1.0, True, "")),
        (Verdict(outcome=Outcome.ABSTAINED, reason="Down."), (0.0, None, None, False, "Down.")),
        (Verdict(outcome=Outcome.UNSCORED, reason="Hung."), (0.0, None, None, False, "Hung.")),
    ],
    ids=["half", "right", "abstained", "unscored"],
)
def test_the_answer_is_worth_what_the_checker_says(verdict, expected):
    checker = Checks(verdict)
    found = ask(AnswerTerm(checker=checker), golds=("NYC", " ", "New York"), metadata={"choices": ["NYC", "LA"]})
    assert (found.value, found.is_correct, found.f1, found.is_scored, found.reason) == expected
    assert (found.answer, found.is_final, found.is_well_formed) == ("NYC", False, None)
    golds, choices = ("NYC", "New York"), ("NYC", "LA")
    claim = Claim(question="Where?", golds=golds, answer="NYC", question_id="q-7", choices=choices)
    assert checker.claims == [claim]


@pytest.mark.parametrize(
    ("place", "answer"),
    [("strict", "B"), ("official", "A or \\boxed{B}"), ("paper", "B"), ("answer", "B"), ("boxed", "C")],
)
def test_the_answer_is_read_where_it_was_asked_for(place, answer):
    text = r"<think>t</think><answer>\boxed A or \boxed{B}</answer> \boxed{C}"
    assert ask(AnswerTerm(checker=TokenF1(), place=place), text).answer == answer
    assert ask(AnswerTerm(checker=TokenF1(), place=place), "").answer == ""


@pytest.mark.parametrize("golds", [(), ("", "  ")], ids=["none", "blank"])
def test_a_question_without_an_accepted_answer_is_not_scored(golds):
    found = ask(AnswerTerm(checker=TokenF1()), golds=golds)
    assert (found.is_scored, found.value) == (False, 0.0)
    assert "no accepted answer" in found.reason


@pytest.mark.parametrize("golds", ["NYC", (7,), (["NYC"],), (None,)], ids=["text", "number", "list", "none"])
@pytest.mark.usefixtures("without_type_checks")
def test_accepted_answers_that_are_no_texts_are_refused(golds):
    with pytest.raises(DataError, match="`answers` of question 'q-7' must be a tuple of texts, but got"):
        ask(AnswerTerm(checker=TokenF1()), golds=golds)


@pytest.mark.usefixtures("without_type_checks")
def test_a_checker_that_gives_no_verdict_is_named():
    with pytest.raises(RewardError, match=r"The checker `Checks` must return a `Verdict`, but got float 1.0"):
        ask(AnswerTerm(checker=Checks(1.0)))


def test_it_is_as_immediate_as_its_checker():
    assert AnswerTerm(checker=TokenF1()).is_immediate
    assert not AnswerTerm(checker=Checks(Verdict())).is_immediate


GOLDS = [("NYC", None), ("{", "not right"), ("</answer>", "not right")]


@pytest.mark.parametrize(("gold", "problem"), GOLDS)
def test_an_accepted_answer_that_no_response_can_give_is_found(gold, problem):
    question = sample().question
    found = AnswerTerm(checker=TokenF1(comparison="typed")).gold_problem(question, gold)
    assert problem is found is None or problem in found
    judge = Checks(Verdict())
    assert AnswerTerm(checker=judge).gold_problem(question, gold) is None
    assert judge.claims == [], "a judge costs money"


def test_what_is_no_arithmetic_after_all_says_nothing_about_golds():
    async def waits():
        await asyncio.sleep(0)

    assert _at_once(waits()) is None


def test_a_checker_that_keeps_a_deadline_itself_has_no_other():
    class Judge:
        keeps_deadline = True

        async def __call__(self, claim):  # noqa: ARG002
            await asyncio.sleep(500)
            return Verdict(score=1.0, is_correct=True)

    found = both({"judge": AnswerTerm(checker=Judge())}, ScoringSettings(deadline_s=60.0))
    assert [output.is_correct for output in found] == [True] * 3


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: AnswerTerm(checker=TokenF1), "`checker` must be an `AnswerChecker`, but got <class"),
        (lambda: AnswerTerm(checker=None), "`checker` must be an `AnswerChecker`"),
        (lambda: AnswerTerm(checker=TokenF1(), place="end"), "`place` must be one of strict, official, paper.*'end'"),
    ],
    ids=["class", "none", "place"],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_without_meaning_are_refused(make, problem):
    with pytest.raises(ConfigError, match=problem):
        make()
