"""What marks a score."""

import pytest

from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.summary import summarise
from aepo_lightning.evaluation.trust import TrustLimits
from tests.support.evaluated import make_result, make_results, make_stamp


def with_failures(number, num_outages=1):
    failed = {"num_calls": {"search": 1}, "num_failed_calls": {"timeout": 1}, "num_outages": num_outages}
    results = [make_result(f"q{i}", **failed) for i in range(number)]
    return results + [make_result(f"q{i}") for i in range(number, 20)]


@pytest.mark.parametrize(
    ("results", "doubt"),
    [
        (with_failures(1), ""),
        (with_failures(2), "tools failed in 10.0 % of the trajectories (limit 5.0 %)"),
        (with_failures(2, 0), ""),
        (make_results(*["1"] * 19, "?"), ""),
        (
            make_results(*["1"] * 18, "?", "-"),
            "10.0 % of the trajectories have no verdict (limit 5.0 %): the score is between 90.0 % and 100.0 %",
        ),
        (make_results(*["1"] * 19), "1 trajectories of 20 questions are missing"),
    ],
    ids=["few failures", "failures", "the policy's errors", "few abstentions", "abstentions", "not whole"],
)
def test_a_share_above_its_limit_marks_a_score(results, doubt):
    summary = summarise(make_stamp(num_samples=1, num_questions=20), results)
    assert TrustLimits().doubts(summary) == ([doubt] if doubt else [])


def test_limits_can_be_stated():
    summary = summarise(make_stamp(num_samples=1), with_failures(4))
    assert TrustLimits(max_failed_tools=0.2).doubts(summary) == []
    assert len(TrustLimits(max_failed_tools=0.0).doubts(summary)) == 1


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["max_failed_tools", "max_unjudged"])
def test_a_limit_is_a_share(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` must be in"):
        TrustLimits(**{name: value})
