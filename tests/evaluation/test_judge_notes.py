"""A score is shown with what labelled answers say of the judge that gave it."""

from pathlib import Path

import pytest

from aepo_lightning.app.evaluation.show import make_report
from aepo_lightning.evaluation.calibration import Calibration, JudgedLabel
from aepo_lightning.evaluation.judge_notes import corrected_score, judge_note
from aepo_lightning.evaluation.labelled import write_calibration
from aepo_lightning.evaluation.report import Report
from aepo_lightning.evaluation.results_file import BenchmarkResults
from aepo_lightning.evaluation.stamps import part_settings
from aepo_lightning.rewards import LLMJudge
from tests.support.evaluated import make_results, make_stamp, write_evaluation
from tests.support.extras import needs

needs("openai", "judge")
JUDGE = LLMJudge("http://127.0.0.1:9/v1", "big")
ABSTAINED = JudgedLabel(question_id="x", is_correct=True, judged=None)


def calibration(judge=JUDGE, pairs=((True, True),) * 6 + ((False, True),) * 2 + ((False, False),) * 8):
    labelled = [
        JudgedLabel(question_id=f"l{i}", is_correct=label, judged=judged) for i, (label, judged) in enumerate(pairs)
    ]
    return Calibration(judge=judge.identity, pairs=(*labelled, ABSTAINED), abstentions={"timeout": 1})


def run(judge=JUDGE, results=None):
    stamp = make_stamp(checker=part_settings(judge))
    return BenchmarkResults(path=Path("a"), stamp=stamp, results=tuple(results or make_results("11", "10", "00", "11")))


def test_a_score_stands_beside_agreement_kappa_and_the_corrected_one():
    note = judge_note(calibration(), run())
    # 14 of 16 agree; kappa = (14/16 - 1/2) / (1/2) = 0.75. 5 of 8 were judged correct, and 2 of 16 labels wrongly so.
    assert note.startswith("riddles: its judge agrees with 16 labelled answers in 87.5 [")
    assert "] % of them, kappa 0.75 [" in note
    assert ", and came to no verdict on 1 others; pass@1 as people would find it: 50.0 [" in note
    assert corrected_score(calibration(), run()).value == pytest.approx(5 / 8 - 2 / 16)


@pytest.mark.parametrize(
    "other",
    [
        LLMJudge("http://127.0.0.1:9/v1", "small"),
        LLMJudge("http://127.0.0.1:9/v1", "big", template="hle"),
        LLMJudge("http://127.0.0.1:9/v1", "big", request={"seed": 1}),
        "a rule",
    ],
    ids=["model", "template", "request", "rule"],
)
def test_another_judge_is_not_spoken_for(other):
    assert corrected_score(calibration(), run(other)) is None
    assert judge_note(calibration(), run(other)) == "riddles: was not judged by big as it was checked."


def test_another_address_is_the_same_judge_and_another_rule_is_said():
    async def rule(claim):
        raise AssertionError

    elsewhere = LLMJudge("http://127.0.0.1:10/v1", "big", rule=rule)
    note = judge_note(calibration(), run(elsewhere))
    assert "(checked with the rule None, used with tests.evaluation.test_judge_notes." in note


def test_the_report_of_a_folder_finds_the_check_in_it(tmp_path):
    write_evaluation(tmp_path, make_results("11", "10"), checker=part_settings(JUDGE))
    assert not any("agrees" in note for note in make_report(tmp_path).notes)
    write_calibration(tmp_path / "judge_check.json", calibration())
    report = make_report(tmp_path)
    assert any("its judge agrees with 16" in note for note in report.notes)
    figures = report.to_dict()["riddles"]["judge_check"]
    assert figures["agreement"]["value"] == 0.875
    assert figures["corrected"]["value"] == pytest.approx(0.625)


def test_without_a_check_a_report_says_nothing_of_it():
    assert Report.of([run()]).to_dict()["riddles"]["judge_check"] is None


def test_a_judge_that_never_came_to_a_verdict_is_said():
    silent = Calibration(judge=JUDGE.identity, pairs=(ABSTAINED,), abstentions={"timeout": 1})
    assert "agrees with 0 labelled answers in none: it came to no verdict, and" in judge_note(silent, run())
