"""Two evaluations question by question."""

from pathlib import Path

import pytest

from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.comparison import compare_results, protocol_differences
from aepo_lightning.evaluation.results_file import BenchmarkResults
from tests.support.evaluated import make_result, make_results, make_stamp


def run(results, name="a", **stamp):
    return BenchmarkResults(path=Path(name), stamp=make_stamp(**stamp), results=tuple(results))


def test_a_comparison_by_hand():
    # means 1/2, 1, 0 and 1, 1/2, 1; differences 1/2, -1/2, 1
    found = compare_results(run(make_results("10", "11", "00")), run(make_results("11", "01", "11")))
    assert (found.before, found.after) == (0.5, pytest.approx(5 / 6))
    assert found.paired.difference.value == pytest.approx(1 / 3)
    assert found.if_worst == found.if_best == pytest.approx(1 / 3)
    assert [(each.question_id, each.before, each.after) for each in found.changes] == [
        ("q1", 1.0, 0.5),
        ("q0", 0.5, 1.0),
        ("q2", 0.0, 1.0),
    ]
    assert (found.num_questions, found.num_left_out, found.num_samples) == (3, 0, (3, 3))


def test_the_order_of_the_files_changes_nothing():
    before, after = make_results("10", "11", "00", "01"), make_results("11", "01", "11", "00")
    assert compare_results(run(before[::-1]), run(after)) == compare_results(run(before), run(after[::-1]))


def test_what_has_no_partner_or_no_verdict_is_left_out_and_counted():
    before = [*make_results("1", "0", "1", "0", "0"), make_result("only here")]
    after = [*make_results("1", "1", "?"), make_result("q3", question="other words?")]
    after.append(make_result("q4", golds=("another",)))
    found = compare_results(run(before), run(after))
    assert (found.num_questions, found.num_left_out) == (2, 4)
    assert found.paired.difference.value == 0.5
    # q2 right before: after it 0 or 1, so -1 or 0, beside 0 and 1
    assert (found.if_worst, found.if_best) == (0.0, pytest.approx(1 / 3))
    turned = compare_results(run(after), run(before))
    assert (turned.if_worst, turned.if_best) == (-found.if_best, -found.if_worst)


def test_runs_without_a_common_question_are_refused():
    with pytest.raises(DataError, match="must have a question in common with verdicts in both, but a and b have none"):
        compare_results(run([make_result("q0")]), run([make_result("q1")], "b"))


@pytest.mark.parametrize("name", ["model", "seed", "num_samples", "versions", "benchmark_digest", "protocol"])
def test_what_is_compared_may_differ(name):
    other = {"model": {"name": "large"}, "seed": 1, "num_samples": 9, "versions": {"torch": "3"}}
    other |= {"benchmark_digest": "d2", "protocol": make_stamp().protocol | {"chat_format": "of another tokenizer"}}
    assert protocol_differences(run([]), run([], **{name: other[name]})) == []


@pytest.mark.parametrize("name", ["benchmark", "protocol", "sampling", "tools", "checker", "metric"])
def test_the_way_in_which_it_is_measured_may_not(name):
    other = "other" if name in ("benchmark", "metric") else {"other": 1}
    assert protocol_differences(run([]), run([], **{name: other}))
