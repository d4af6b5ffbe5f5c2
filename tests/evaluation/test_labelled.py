"""Labelled answers are read or refused by line, and what a judge made of them is written and read again."""

import asyncio
import json

import pytest

from aepo_lightning.contracts.checker import Outcome, Verdict
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.calibration import JudgedLabel
from aepo_lightning.evaluation.labelled import calibrate, read_calibration, read_labelled, write_calibration

ROW = {"question": "2?", "golds": ["two"], "answer": "2", "is_correct": True}


def written(tmp_path, *rows):
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_each_line_is_a_claim_with_its_label(tmp_path):
    rows = [
        ROW,
        "",
        ROW | {"golds": "zwei", "answer": "", "is_correct": False, "question_id": 7, "choices": ["1", "2"]},
    ]
    first, second = read_labelled(written(tmp_path, *rows))
    assert (first.claim.question_id, first.claim.golds, first.is_correct) == ("2?", ("two",), True)
    assert (second.claim.question_id, second.claim.golds, second.claim.choices) == ("7", ("zwei",), ("1", "2"))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "must hold labelled answers, but is empty"),
        ([ROW, '{"question": '], "line 2 must be a JSON object"),
        (["[1]"], "line 1 must be a JSON object, but is"),
        ([{"answer": "2"}], "`golds`|`question` of .*line 1 must be"),
        ([ROW | {"golds": [2]}], r"`golds` of .* must be a list of texts, but got \[2\]"),
        ([ROW | {"golds": None}], "`golds` of .* must be a list of texts, but got None"),
        ([ROW | {"answer": 2}], "`answer` of .* must be a text, but got 2"),
        ([ROW | {"is_correct": "yes"}], "`is_correct` of .* must be true or false, but got 'yes'"),
        ([ROW | {"choices": "ab"}], "`choices` of"),
        (
            [ROW | {"question_id": "a"}, ROW | {"question_id": "a", "question": "3?"}],
            "'a' .* must stand for one question",
        ),
        ([ROW, ROW | {"is_correct": False}], "'2' to question '2[?]' .* must have one label, but has both"),
    ],
)
def test_what_is_no_labelled_answer_is_refused_by_its_line(rows, match, tmp_path):
    with pytest.raises(DataError, match=match):
        read_labelled(written(tmp_path, *rows))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl must be a JSONL file"):
        read_labelled(tmp_path / "none.jsonl")


async def judge(claim):
    if claim.answer == "down":
        return Verdict(outcome=Outcome.ABSTAINED, reason="unreachable: The judge m could not be reached.")
    if claim.answer == "odd":
        return Verdict(outcome=Outcome.ABSTAINED, reason="Nobody knows: why.")
    if not claim.golds:
        return Verdict(outcome=Outcome.UNSCORED, reason="No gold.")
    return Verdict(score=1.0, is_correct=True)


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    rows = [ROW, ROW | {"answer": "3", "is_correct": False}, ROW | {"answer": "down"}, ROW | {"answer": "odd"}]
    labelled = read_labelled(written(tmp_path, *rows, ROW | {"golds": [], "question_id": "b"}))
    found = asyncio.run(calibrate(judge, labelled, {"model": "m"}))
    assert found.pairs[:2] == (
        JudgedLabel(question_id="2?", is_correct=True, judged=True),
        JudgedLabel(question_id="2?", is_correct=False, judged=True),
    )
    assert found.abstentions == {"abstained": 1, "unreachable": 1, "unscored": 1}
    path = tmp_path / "new" / "found.json"
    write_calibration(path, found)
    assert read_calibration(path) == found
    plain = json.loads(path.read_text())
    assert (plain["num_pairs"], plain["num_questions"], plain["agreement"]["value"]) == (5, 2, 0.5)
    assert plain["confusion"]["abstained_correct"] == 3


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 2}', '{"format": 1, "judge": {}, "pairs": [[1]], "abstentions": {}}', "[]"]
)
def test_a_file_that_is_no_calibration_is_refused(text, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"found\.json must be a calibration that `aepo-eval judge-check` wrote"):
        read_calibration(path)
