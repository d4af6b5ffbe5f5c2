"""Trajectories are judged anew: a judge that was down is asked again, and what it has said is kept."""

from dataclasses import dataclass, field

import pytest

from aepo_lightning.app.evaluation.rejudge import _judge_again, rejudge
from aepo_lightning.errors import ConfigError
from aepo_lightning.evaluation.results_file import read_results, results_path
from aepo_lightning.evaluation.stamps import part_settings
from tests.support.benchmarks import SameWords
from tests.support.evaluated import ABSTAINED, RIGHT, make_results, write_evaluation


@dataclass
class Remote:
    """A judge that can be down and counts whom it is asked about."""

    model: str = "large"
    is_up: bool = True
    stops_at: str = ""
    asked: list = field(default_factory=list)

    @property
    def identity(self):
        return {"model": self.model}

    async def __call__(self, claim):
        if claim.question_id == self.stops_at:
            raise KeyboardInterrupt
        self.asked.append(claim.question_id)
        return RIGHT if self.is_up or claim.question_id == "q0" else ABSTAINED


def evaluated_by(checker, folder, *verdicts):
    write_evaluation(folder, make_results(*verdicts), checker=part_settings(checker))
    return read_results(results_path(folder, "riddles"))


def outcomes(path):
    return {each.question_id: str(each.verdict.outcome) for each in read_results(path).results}


def test_a_judge_that_was_down_is_asked_again_for_what_it_did_not_score(tmp_path):
    old, path = evaluated_by(SameWords(), tmp_path, "0", "0", "0"), tmp_path / "new.jsonl"
    down, up = Remote(is_up=False), Remote()
    assert _judge_again(old, down, path) == 2
    assert outcomes(path) == {"q0": "scored", "q1": "abstained", "q2": "abstained"}
    assert _judge_again(old, up, path) == 0
    assert (down.asked, up.asked) == (["q0", "q1", "q2"], ["q1", "q2"])
    assert outcomes(path) == dict.fromkeys(("q0", "q1", "q2"), "scored")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["new.jsonl"], "nothing is set aside"


def test_what_was_judged_before_ctrl_c_is_kept(tmp_path):
    old, path = evaluated_by(SameWords(), tmp_path, "0", "0", "0"), tmp_path / "new.jsonl"
    judge, again = Remote(stops_at="q2"), Remote()
    with pytest.raises(KeyboardInterrupt):
        _judge_again(old, judge, path)
    assert outcomes(path) == {"q0": "scored", "q1": "scored"}
    assert _judge_again(old, again, path) == 0
    assert (judge.asked, again.asked) == (["q0", "q1"], ["q2"])


def test_another_judge_of_the_same_name_is_refused_before_a_verdict_is_dropped(tmp_path):
    old, path = evaluated_by(SameWords(), tmp_path, "0", "0"), tmp_path / "new.jsonl"
    _judge_again(old, Remote(is_up=False), path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"checker.model: large -> small"):
        _judge_again(old, Remote(model="small"), path)
    assert path.read_bytes() == before


def test_the_judge_of_the_evaluation_keeps_what_it_scored_there_and_a_rule_is_asked_anew(tmp_path):
    judge, other = Remote(), Remote(model="small")
    old = evaluated_by(judge, tmp_path, "0", "?", "-")
    _judge_again(old, judge, tmp_path / "same.jsonl")
    _judge_again(old, other, tmp_path / "other.jsonl")
    assert (judge.asked, other.asked) == (["q1", "q2"], ["q0", "q1", "q2"])
    kept = {each.question_id: each.verdict.is_correct for each in read_results(tmp_path / "same.jsonl").results}
    assert kept == {"q0": False, "q1": True, "q2": True}
    rule = SameWords()
    _judge_again(evaluated_by(rule, tmp_path / "rule", "0"), rule, tmp_path / "ruled.jsonl")
    assert read_results(tmp_path / "ruled.jsonl").results[0].verdict.is_correct


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp"])
def test_verdicts_never_lie_elsewhere_than_below_their_evaluation(tmp_path, name):
    with pytest.raises(ConfigError, match=f"`name` must be that of a folder, without a path, but got '{name}'"):
        rejudge([str(tmp_path), "judge=llm", f"--name={name}"])
