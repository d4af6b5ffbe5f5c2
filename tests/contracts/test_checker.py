"""Verdicts: what counts, and the best of several."""

import pytest

from aepo_lightning.contracts.checker import Claim, Outcome, Verdict, best_of
from aepo_lightning.contracts.question import Question
from aepo_lightning.errors import DataError

UNSCORED = Verdict(outcome=Outcome.UNSCORED, reason="too long")
WRONG, HALF = Verdict(), Verdict(score=0.5)
RIGHT = Verdict(score=1.0, is_correct=True)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_is_a_share(score):
    with pytest.raises(ValueError, match="must be in"):
        Verdict(score=score)


@pytest.mark.parametrize("given", [{"score": 0.5}, {"is_correct": True}, {"reason": ""}])
def test_what_was_not_scored_counts_nothing_and_says_why(given):
    with pytest.raises(ValueError, match="must have no score and a `reason`"):
        Verdict(**{"outcome": Outcome.ABSTAINED, "reason": "no answer", **given})


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([WRONG, HALF, RIGHT], RIGHT),
        ([WRONG, HALF], HALF),
        ([UNSCORED, RIGHT], RIGHT),
        ([UNSCORED, HALF], UNSCORED),
        ([UNSCORED], UNSCORED),
    ],
)
def test_the_best_counts_and_a_missing_one_only_where_it_could_change_that(verdicts, expected):
    assert best_of(verdicts) == expected


def test_there_is_no_best_of_none():
    with pytest.raises(ValueError, match="must not be empty"):
        best_of([])


@pytest.mark.parametrize("choices", ["Paris", b"Paris", {"A": "Paris"}, 2, [["Paris"]], [None]])
def test_choices_that_are_no_list_of_texts_name_their_question(choices):
    question = Question(question_id="q-7", messages=(), answers=("A",), metadata={"choices": choices})
    with pytest.raises(DataError, match=r"`choices` of question 'q-7' must be a list of texts, .* but got"):
        Claim.of(question, "A")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [({}, ()), ({"choices": None}, ()), ({"choices": []}, ()), ({"choices": (3, "4")}, ("3", "4"))],
)
def test_choices_are_read_as_texts(metadata, expected):
    assert Claim.of(Question(question_id="q", messages=(), answers=("A",), metadata=metadata), "A").choices == expected
