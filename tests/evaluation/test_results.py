"""Results and stamps: what is refused, what comes back from plain values, which settings differ."""

import json
from dataclasses import replace

import pytest

from aepo_lightning.contracts.checker import Claim
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.results import result_from_dict, result_to_dict, stamp_from_dict, stamp_to_dict
from tests.support.evaluated import ABSTAINED, make_result, make_stamp

FULL = make_result(
    verdict=ABSTAINED,
    choices=("a", "b"),
    level="2",
    response_text="line\r\n\x00\ud800 \u202e",
    scores={"em": 1.0, "f1": 0.5},
    num_calls={"search": 3, "python": 1},
    num_failed_calls={"timeout": 1},
    num_outages=1,
    num_generated_tokens=9,
    num_result_tokens=4,
    seed=2**63 - 1,
)


@pytest.mark.parametrize("result", [make_result(), FULL], ids=["short", "everything"])
def test_a_result_comes_back_from_its_text(result):
    assert result_from_dict(json.loads(json.dumps(result_to_dict(result)))) == result


def test_a_result_can_be_judged_again():
    expected = Claim(question="what is q0?", golds=("42",), answer="42", question_id="q0", choices=("a", "b"))
    assert FULL.claim == expected
    assert FULL.num_tool_calls == 4


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sample": -1}, "sample"),
        ({"num_generated_tokens": -1}, "num_generated_tokens"),
        ({"num_calls": {"search": -1}}, "search"),
        ({"scores": {"f1": float("nan")}}, "f1"),
    ],
)
def test_numbers_without_meaning_are_refused(changes, name):
    with pytest.raises(ValueError, match=f"`{name}` must be finite"):
        make_result(**changes)


@pytest.mark.parametrize(
    "damage",
    [{"verdict": None}, {"stop_reason": "bored"}, {"golds": 3}, {"verdict": {"outcome": "maybe"}}, {"extra": 1}],
)
def test_other_fields_are_no_result(damage):
    with pytest.raises(DataError, match="must have the fields of `TrajectoryResult`"):
        result_from_dict(result_to_dict(FULL) | damage)


def test_a_stamp_comes_back_from_its_text_with_its_digest():
    stamp = make_stamp(protocol={"stop": ("</search>",), "limits": {"b": 1, "a": 2}})
    again = stamp_from_dict(json.loads(json.dumps(stamp_to_dict(stamp))))
    assert stamp.digest == again.digest
    assert stamp.differences(again) == []
    assert replace(stamp, protocol={"limits": {"a": 2, "b": 1}, "stop": ["</search>"]}).digest == stamp.digest


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"num_samples": 5}, "num_samples: 3 -> 5"),
        ({"benchmark_digest": "d2"}, "benchmark_digest: d1 -> d2"),
        ({"sampling": {"temperature": 1.0, "top_p": 0.95}}, "sampling.temperature: 0.6 -> 1.0"),
        ({"tools": {}}, "tools.search: a corpus -> (not there)"),
        ({"model": {"name": "small", "global_step": False}}, "model.global_step: 0 -> False"),
        ({"versions": {"aepo_lightning": "0" * 99}}, f"versions.aepo_lightning: 0.1.0 -> {'0' * 60}..."),
    ],
)
def test_settings_that_differ_are_named_with_both_values(changes, difference):
    other = make_stamp(**changes)
    assert make_stamp().differences(other) == [difference]
    assert make_stamp().digest != other.digest
    assert make_stamp().differences(other, names=("checker",)) == []


def test_what_has_other_fields_is_no_stamp():
    with pytest.raises(DataError, match="must have the fields of `EvaluationStamp`"):
        stamp_from_dict({"benchmark": "riddles"})
