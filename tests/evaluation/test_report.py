"""Tables, JSON, Markdown and the picture of an evaluation."""

import json
from pathlib import Path

import pytest

from aepo_lightning.contracts.checker import Verdict
from aepo_lightning.errors import DataError
from aepo_lightning.evaluation.benchmark import PublishedScore
from aepo_lightning.evaluation.report import Report, draw_pass_at_k, percent
from aepo_lightning.evaluation.results_file import BenchmarkResults
from aepo_lightning.evaluation.summary import Score
from aepo_lightning.evaluation.trust import TrustLimits
from tests.support.evaluated import make_result, make_results, make_stamp

PAPER = PublishedScore(method="AEPO", model="Qwen3-14B", value=47.6, source="a paper, table 1")
AT_5 = PublishedScore(method="AEPO", model="Qwen3-14B", value=65.0, source="a paper, table 1", metric="pass@3")
LEVEL = PublishedScore(method="ARPO", model="Qwen3-8B", value=53.9, source="another", level="2", note="half the set")
F1 = PublishedScore(method="AEPO", model="Qwen2.5-7B", value=45.8, source="a third", metric="f1")


def run(results, **stamp):
    made = make_stamp(**stamp)
    return BenchmarkResults(path=Path("a"), stamp=made, results=tuple(results))


def test_published_rows_stand_under_what_they_are_beside():
    results = [*make_results("110", "000", level="1"), *[make_result("q9", n, level="2") for n in range(3)]]
    report = Report.of([run(results)], published={"riddles": [PAPER, AT_5, LEVEL]})
    table = report.tables[0]
    assert list(table.headings) == ["benchmark", "questions", "score", "pass@1", "pass@2", "pass@3", "maj@n"]
    assert [row[0].strip() for row in table.rows] == [
        "riddles (accuracy)",
        "published: AEPO, Qwen3-14B",
        "level 1",
        "level 2",
        "published: ARPO, Qwen3-8B",
    ]
    assert table.rows[0][2].startswith("55.6 [")
    assert list(table.rows[1][2:]) == ["47.6", "", "", "65.0", ""]
    assert table.rows[4][2] == "53.9"
    assert "AEPO, Qwen3-14B: a paper, table 1." in report.notes
    assert "ARPO, Qwen3-8B: half the set." in report.notes
    assert "riddles: verdicts by kind exact_match." in report.notes


def test_a_published_f1_is_a_headline():
    report = Report.of([run([make_result(verdict=Verdict(score=0.5))], metric="f1")], published={"riddles": [F1]})
    assert [row[2] for row in report.tables[0].rows] == ["50.0 [1.3, 98.8]", "45.8"]


@pytest.mark.parametrize(
    ("bounds", "text"), [((0.5, 0.5), "50.0 [40.0, 60.0]"), ((0.45, 0.55), "50.0 [40.0, 60.0] (45.0..55.0)")]
)
def test_bounds_are_shown_where_verdicts_are_missing(bounds, text):
    score = Score(value=0.5, low=0.4, high=0.6, if_wrong=bounds[0], if_right=bounds[1], num_questions=9)
    assert percent(score) == text


def test_what_is_not_known_is_a_dash():
    assert percent(None) == "-"
    assert Report.of([run(make_results("?"))]).tables[0].rows[0][2] == "-"


def test_many_samples_are_shown_at_powers_of_two():
    table = Report.of([run(make_results("1" * 10), num_samples=10)]).tables[0]
    assert [each for each in table.headings if each.startswith("pass@")] == [f"pass@{k}" for k in (1, 2, 4, 8, 10)]


def test_doubts_come_first_and_refuse_an_evaluation():
    report = Report.of([run(make_results("1?", "00"), num_samples=2), run([], benchmark="sums")])
    assert report.notes[0].startswith("! riddles: 25.0 % of the trajectories have no verdict")
    assert report.notes[1] == "! sums: no trajectory is there yet."
    with pytest.raises(
        DataError, match=r"(?s)must rest on .*\n  riddles: 25.0 %.*\n  sums: no traj.*leave out --strict"
    ):
        report.check()
    report = Report.of([run(make_results("1?", "00"), num_samples=2)], TrustLimits(max_unjudged=0.25))
    report.check()
    assert report.doubts == {}


def test_nothing_to_show_is_refused():
    with pytest.raises(DataError, match="must have a result to be shown, but got none of riddles"):
        Report.of([run([])])


def test_a_report_is_written_whole_in_three_forms(tmp_path):
    results = make_results("110", "0?1", level="a|b", num_calls={"search": 2})
    report = Report.of([run(results)], published={"riddles": [PAPER]})
    paths = report.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pass_at_k.png", "report.json", "report.md"]
    found = json.loads(paths[0].read_text())["riddles"]
    assert found["summary"]["score"]["if_right"] == pytest.approx(2 / 3)
    assert found["summary"]["pass_by_calls"]["2"]["1"] == found["summary"]["pass_at"]["1"]["value"]
    assert found["published"][0]["value"] == 47.6
    assert found["stamp"]["sampling"] == {"temperature": 0.6, "top_p": 0.95}
    assert len(found["doubts"]) == 1
    markdown = paths[1].read_text()
    assert "| published: AEPO, Qwen3-14B |  | 47.6 |" in markdown
    assert "| level a\\|b |" in markdown
    lines = [line.replace("\\|", "") for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in lines[:5]} == {len(report.tables[0].headings) + 1}
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_curve_for_each_benchmark_with_values():
    report = Report.of([run(make_results("110", "001")), run(make_results("??"), benchmark="unjudged")])
    (axes,) = draw_pass_at_k(report.summaries).axes
    (line,) = axes.lines
    assert line.get_label() == "riddles"
    assert list(line.get_ydata()) == [report.summaries[0].pass_at[k].value for k in (1, 2, 3)]
