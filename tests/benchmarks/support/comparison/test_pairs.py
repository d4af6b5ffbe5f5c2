"""Pairs of runs that did not begin from one cold start are counted and named."""

import pytest

from benchmarks.support.comparison.claims import COMPARISONS, Comparison
from benchmarks.support.comparison.pairs import compared_pairs, unlike_pairs
from benchmarks.support.comparison.settings import Job
from benchmarks.support.comparison.table import details
from benchmarks.support.comparison.verdicts import Results, judge
from tests.support.compared import BEDS, factorial_ends, make_record, make_records

AREA = Comparison(claim="C1", outcome="area", treated="aepo", control="grpo", beds=("burst",))
FACTOR = Comparison(claim="C5", outcome="area", treated="M", control="without", beds=("burst",))
RATIO = Comparison(claim="C12", outcome="area", treated="grpo", control="nothing", beds=("burst",))


def two_runs(**held_out):
    """Runs of AEPO and GRPO at seed 0, the second with other held-out figures."""
    records = make_records({"aepo": 0.5, "grpo": 0.4}, seeds=[0], beds=["burst"])
    records[Job("burst", "grpo", 0)]["held_out"] |= held_out
    return Results(records, BEDS)


def test_pairs_are_those_of_the_comparisons_each_once():
    records = make_records(factorial_ends({}) | {"grpo": 0.4}, seeds=range(2), beds=["burst"])
    records[Job("burst", "grpo", 1)] = make_record(Job("burst", "grpo", 1), status="failed")
    results = Results(records, BEDS)
    assert compared_pairs(results, [AREA, AREA, RATIO]) == [(Job("burst", "aepo", 0), Job("burst", "grpo", 0))]
    assert len(compared_pairs(results, [FACTOR])) == 2 * 8


@pytest.mark.parametrize(
    ("held_out", "num_unlike"),
    [
        pytest.param({}, 0, id="the same"),
        pytest.param({"val/pass@1": [0.2, 0.9], "step": [0, 5]}, 0, id="another end"),
        pytest.param({"val/pass@1": [0.21, 0.5]}, 1, id="another pass@1"),
        pytest.param({"val/pass@4": [0.3, 0.5]}, 1, id="another pass@4"),
        pytest.param({"val/entropy": [0.7, 0.5]}, 0, id="a figure that one of them lacks"),
        pytest.param({"step": [1, 2]}, 1, id="no evaluation before the training"),
        pytest.param({"step": []}, 1, id="no evaluation"),
        pytest.param({"val/pass@1": [None, 0.5], "val/pass@4": [None, 0.5]}, 1, id="no figure"),
    ],
)
def test_a_pair_is_one_if_both_have_the_same_evaluation_at_step_0(held_out, num_unlike):
    assert len(unlike_pairs(two_runs(**held_out), [AREA])) == num_unlike


def test_the_details_say_how_many_and_where():
    results = two_runs(**{"val/pass@1": [0.21, 0.5]})
    text = details(results, judge(results, [AREA]))
    assert "cold starts that are not the same: 1 of 1 (bed and seed: burst 0)." in text
    like = two_runs()
    assert "cold starts that are not the same: 0 of 1.\n" in details(like, judge(like, [AREA]))


def test_planned_comparisons_have_pairs():
    results = Results(make_records(factorial_ends({}) | {"grpo": 0.4}, seeds=range(2)), BEDS)
    assert unlike_pairs(results, COMPARISONS) == []
    assert len(compared_pairs(results, COMPARISONS)) == 3 * 2 * (4 * 8 + 3)
