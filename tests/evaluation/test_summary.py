"""The numbers of an evaluation against numbers by hand, and what abstentions do to them."""

import random

import pytest

from aepo_lightning.contracts.checker import Outcome, Verdict
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.evaluation.statistics import interval_over_questions, pass_at_k_of_questions
from aepo_lightning.evaluation.summary import ballot, by_question, summarise
from tests.support.evaluated import ABSTAINED, RIGHT, UNSCORED, make_result, make_results, make_stamp


def test_scores_by_hand():
    # means 2/3, 1/3, 0; pass@2 of 2 of 3: 1, of 1 of 3: 2/3; any of three: 1, 1, 0
    found = summarise(make_stamp(num_questions=3), make_results("110", "001", "000"))
    assert found.score.value == pytest.approx(1 / 3)
    assert [found.pass_at[k].value for k in (1, 2, 3)] == pytest.approx([1 / 3, 5 / 9, 2 / 3])
    assert (found.num_questions, found.num_trajectories, found.num_missing) == (3, 9, 0)
    assert found.score.if_wrong == found.score.if_right == pytest.approx(1 / 3)
    assert found.pass_at[1].low == found.score.low < 1 / 3 < found.score.high


def test_the_order_of_the_file_changes_nothing():
    results = make_results("110", "0?1", "-11", "000")
    shuffled = random.Random(0).sample(results, len(results))
    assert summarise(make_stamp(), shuffled) == summarise(make_stamp(), results)


def test_f1_is_the_mean_of_scores_and_pass_at_k_of_what_is_correct():
    results = [make_result("q0", 0, Verdict(score=0.4)), make_result("q1", 0, Verdict(score=1.0, is_correct=True))]
    found = summarise(make_stamp(metric="f1"), results)
    assert found.score.value == 0.7
    assert found.pass_at[1].value == 0.5


def test_what_has_no_verdict_is_left_out_and_bounds_say_what_it_could_be():
    # q0: 1 of 1 known, 1/3 to 1; q1: 1 of 2 known, 1/3 to 2/3; q2: nothing known, 0 to 1
    found = summarise(make_stamp(), make_results("1??", "01-", "???"))
    assert found.score.value == (1 + 1 / 2) / 2
    assert found.score.num_questions == 2
    assert found.score.if_wrong == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert found.score.if_right == pytest.approx((1 + 2 / 3 + 1) / 3)
    # two samples with verdicts has q1 alone; counted as wrong: 1 of 3 right in q0 and q1; as right: 3, 2 and 3 of 3
    assert (found.pass_at[2].value, found.pass_at[2].num_questions) == (1.0, 1)
    assert found.pass_at[2].if_wrong == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found.pass_at[2].if_right == 1.0
    assert (found.pass_at[3].value, found.pass_at[3].low, found.pass_at[3].num_questions) == (None, None, 0)


@pytest.mark.parametrize("seed", [2, 4, 5, 11, 13])
def test_the_bounds_hold_whatever_the_verdicts_would_have_been(seed):
    draw = random.Random(seed)
    letters = ["".join(draw.choice("01?") for _ in range(3)) for _ in range(6)]
    full = ["".join(draw.choice("01") if each == "?" else each for each in question) for question in letters]
    known, truth = summarise(make_stamp(), make_results(*letters)), summarise(make_stamp(), make_results(*full))
    for one, true in ((known.score, truth.score), *((known.pass_at[k], truth.pass_at[k]) for k in (1, 2, 3))):
        assert one.if_wrong - 1e-12 <= true.value <= one.if_right + 1e-12
        assert one.value is None or one.if_wrong - 1e-12 <= one.value <= one.if_right + 1e-12


def test_a_pass_at_k_of_other_questions_does_not_contradict_what_is_certain():
    # the second is solved for certain; the one with two verdicts alone would say 0
    found = summarise(make_stamp(), make_results("00", "1?")).pass_at[2]
    assert (found.value, found.if_wrong, found.num_questions) == (0.5, 0.5, 1)


def test_nothing_known_is_no_score():
    found = summarise(make_stamp(), make_results("??", "-?"))
    assert (found.score.value, found.score.if_wrong, found.score.if_right) == (None, 0.0, 1.0)
    assert (found.majority.value, found.calls.productivity) == (None, None)


def test_no_results_are_refused():
    with pytest.raises(ValueError, match="must hold a trajectory, but got none"):
        summarise(make_stamp(), [])


def test_questions_that_were_not_asked_yet_are_missing():
    assert summarise(make_stamp(num_questions=4), make_results("110", "01")).num_missing == 4 * 3 - 5
    assert summarise(make_stamp(), make_results("110", "01")).num_missing == 1


def test_samples_vote_by_their_answers():
    answers = {"q0": ("The Nile", "nile.", "Amazon"), "q1": ("1.5", "15", "1.5"), "q2": ("a", "b", "")}
    right = {"The Nile", "nile.", "1.5", "a"}
    results = [
        make_result(name, sample, Verdict(score=float(answer in right), is_correct=answer in right), answer=answer)
        for name, given in answers.items()
        for sample, answer in enumerate(given)
    ]
    found = summarise(make_stamp(), results)
    assert found.majority.value == (1 + 1 + 0.5) / 3
    assert found.tied_fraction == pytest.approx(1 / 3)


def test_a_vote_without_a_verdict_has_bounds():
    results = [make_result("q0", sample, ABSTAINED) for sample in range(2)]
    found = summarise(make_stamp(), [*results, make_result("q1", 0)])
    assert (found.majority.value, found.majority.num_questions) == (1.0, 1)
    assert (found.majority.if_wrong, found.majority.if_right) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("The  Beatles", "beatles!", True),
        ("(A)", "a", True),
        ("A", "B", False),
        ("1.5", "15", False),
        ("-5", "5", False),
        ("\\frac{a}{bc}", "\\frac{ab}{c}", False),
        ("X = 2", "x  = 2", True),
        ("?!", " ", False),
        ("", " \n", True),
    ],
)
def test_ballots_are_the_same_where_answers_are(one, other, is_same):
    assert (ballot(one) == ballot(other)) is is_same


def test_levels_have_their_own_scores():
    results = [*make_results("11", "00", level="1"), make_result("q9", 0, level="2")]
    found = summarise(make_stamp(), results)
    assert list(found.levels) == ["1", "2"]
    assert found.levels["1"].score.value == 0.5
    assert found.levels["2"].pass_at[1].num_questions == 1
    assert summarise(make_stamp(), make_results("11")).levels == {}


def test_pass_at_k_counts_only_what_needed_few_calls():
    calls = {("q0", 0): 1, ("q0", 1): 3, ("q1", 0): 0, ("q1", 1): 9}
    results = [make_result(*pair, num_calls={"search": number}) for pair, number in calls.items()]
    found = summarise(make_stamp(), results).pass_by_calls
    # within 0 calls: q1 once of two; 1: each once of two; 3: q0 twice; 9: all
    assert found == {0: {1: 0.25, 2: 0.5}, 1: {1: 0.5, 2: 1.0}, 3: {1: 0.75, 2: 1.0}, 9: {1: 1.0, 2: 1.0}}


@pytest.mark.parametrize("seed", range(5))
def test_more_calls_never_solve_less_and_all_of_them_what_was_solved(seed):
    draw = random.Random(seed)
    letters = ["".join(draw.choice("001?") for _ in range(3)) for _ in range(5)]
    results = [make_result(each.question_id, each.sample, each.verdict, num_calls={"search": draw.randrange(5)})
               for each in make_results("111", *letters)]  # fmt: skip
    found = summarise(make_stamp(), results)
    for k in (1, 2, 3):
        curve = [at[k] for at in found.pass_by_calls.values()]
        assert curve == sorted(curve)
        assert curve[-1] == pytest.approx(found.pass_at[k].value)


def test_pass_at_k_within_all_calls_is_pass_at_k_where_verdicts_are_missing():
    found = summarise(make_stamp(), make_results("00", "1?", num_calls={"search": 2}))
    assert found.pass_by_calls == {0: {1: 0.0, 2: 0.0}, 2: {1: 0.5, 2: 0.5}}
    assert found.pass_at[2].value == 0.5


def test_shares_and_calls_by_hand():
    results = [
        make_result("q0", 0, num_calls={"search": 2, "python": 1}, num_failed_calls={"busy": 1}, num_outages=1),
        make_result("q0", 1, ABSTAINED, answer=" ", num_generated_tokens=10, num_result_tokens=4),
        make_result(
            "q1",
            0,
            num_calls={"search": 1},
            num_failed_calls={"error": 1},
            scores={"f1": 0.5},
            stop_reason=StopReason.TIMEOUT,
        ),
        make_result("q1", 1, stop_reason=StopReason.LENGTH, scores={"f1": 1.0}),
    ]
    found = summarise(make_stamp(), results)
    shares, calls = found.shares, found.calls
    assert (shares.answered, shares.truncated, shares.abstained, shares.unscored) == (0.75, 0.5, 0.25, 0.0)
    assert (shares.failed_tools, shares.with_tools) == (0.25, 0.5)
    assert shares.failed_calls == {"busy": 0.25, "error": 0.25}
    assert (calls.num_calls, calls.by_tool) == (1.0, {"python": 0.25, "search": 0.75})
    assert (calls.num_generated_tokens, calls.num_result_tokens) == (2.5, 1.0)
    assert calls.productivity == pytest.approx(100 * 1.0 * 1 / 1.1)
    assert found.further == {"f1": 0.75}


def test_what_a_judge_leaves_open_is_told_from_what_it_failed_to_say():
    reasons = ("undecided: The judge m abstains.", "unreachable: The judge m was not there.", "I cannot tell.")
    verdicts = [*(Verdict(outcome=Outcome.ABSTAINED, reason=reason) for reason in reasons), UNSCORED, RIGHT]
    shares = summarise(make_stamp(), [make_result("q", n, each) for n, each in enumerate(verdicts)]).shares
    assert (shares.abstained, shares.failed_judge, shares.unscored) == (0.6, 0.4, 0.2)
    assert shares.no_verdict == dict.fromkeys(("abstained", "undecided", "unreachable", "unscored"), 0.2)


def slow_summary(results):
    """Return headline and pass@2 as they are defined, trajectory by trajectory."""
    means, pairs = [], []
    for name in sorted({each.question_id for each in results}):
        outcomes = [each.verdict.is_correct for each in results if each.question_id == name and each.verdict.is_scored]
        if outcomes:
            means.append(sum(outcomes) / len(outcomes))
        if len(outcomes) >= 2:
            both = [(a or b) for i, a in enumerate(outcomes) for b in outcomes[i + 1 :]]
            pairs.append(sum(both) / len(both))
    return sum(means) / len(means), sum(pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_slow_reference(seed):
    draw = random.Random(seed)
    results = make_results("101", *["".join(draw.choice("01?") for _ in range(4)) for _ in range(8)])
    found = summarise(make_stamp(), results)
    assert (found.score.value, found.pass_at[2].value) == pytest.approx(slow_summary(results))
    drawn = by_question(results)
    assert [each.sample for each in drawn[0]] == [0, 1, 2]
    assert found.pass_at[1].value == pytest.approx(found.score.value)


def test_an_interval_is_over_questions_not_over_trajectories():
    found = summarise(make_stamp(), make_results(*["1111111111", "0000000000"] * 3))
    values = pass_at_k_of_questions([10, 0] * 3, [10] * 6, 1)
    assert (found.score.low, found.score.high) == (
        interval_over_questions(values).low,
        interval_over_questions(values).high,
    )
    assert found.score.high - found.score.low > 0.6  # six questions, whatever the samples
