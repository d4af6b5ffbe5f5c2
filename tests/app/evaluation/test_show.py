"""`aepo-eval show`: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest

from aepo_lightning.app.evaluation.published import judge_note
from aepo_lightning.app.evaluation.show import show
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.calibration import Calibration, JudgedLabel
from aepo_lightning.evaluation.labelled import write_calibration
from aepo_lightning.evaluation.results_file import BenchmarkResults
from tests.support.evaluated import make_results, make_stamp, write_evaluation


@pytest.fixture
def folder(tmp_path):
    """An evaluation in which one of six trajectories has no verdict."""
    return write_evaluation(tmp_path, make_results("110", "0?1"))


def test_the_tables_are_printed(folder, capsys):
    show([str(folder)])
    text = capsys.readouterr().out
    for piece in ("riddles (accuracy)", "2 x 3", "58.3 [50.0, 66.7] (50.0..66.7)", "! riddles: 16.7 % of the traj"):
        assert piece in text
    assert [path.name for path in folder.iterdir()] == ["results"]


def test_markdown_and_json_are_printed_alone(folder, capsys):
    show([str(folder), "--markdown"])
    assert capsys.readouterr().out.startswith("**Scores in percent")
    show([str(folder), "--json", "--write"])
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "report.json").read_text())


def test_a_score_of_another_version_of_the_questions_is_marked(tmp_path, capsys):
    show([str(write_evaluation(tmp_path, make_results("110"), is_other_version=True))])
    assert "! riddles: its questions are another version than the known one" in capsys.readouterr().out


def test_a_score_in_doubt_is_shown_and_refused_by_strict(folder, capsys):
    with pytest.raises(DataError, match=r"riddles: 16.7 % of the trajectories have no verdict"):
        show([str(folder), "--strict"])
    assert "58.3" in capsys.readouterr().out
    show([str(folder), "--strict", "--max-unjudged", "0.2"])


def test_the_check_of_a_judge_in_the_folder_is_shown_and_another_where_it_is_named(folder, tmp_path, capsys):
    pairs = tuple(JudgedLabel(question_id=str(n), is_correct=True, judged=True) for n in range(3))
    write_calibration(folder / "judge_check.json", Calibration(judge={"model": "large"}, pairs=pairs))
    write_calibration(tmp_path / "other.json", Calibration(judge={"model": "small"}, pairs=pairs))
    show([str(folder)])
    assert "riddles: was not judged by large as it was checked" in capsys.readouterr().out
    show([str(folder), "--judge-check", str(tmp_path / "other.json")])
    assert "riddles: was not judged by small as it was checked" in capsys.readouterr().out
    with pytest.raises(DataError, match="must be a calibration that `aepo-eval judge-check` wrote"):
        show([str(folder), "--judge-check", str(tmp_path / "nowhere.json")])


def test_published_numbers_stand_beside_a_known_benchmark(tmp_path, capsys):
    write_evaluation(tmp_path, make_results("11", benchmark="gaia"), benchmark="gaia", num_samples=2)
    show([str(tmp_path)])
    text = capsys.readouterr().out
    assert "published: AEPO, Qwen3-14B" in text
    assert "ARPO, Qwen3-14B" not in text
    assert "! gaia: these verdicts are a rule's, published numbers are by the judge 'paper'." in text
    show([str(tmp_path), "--published", "arpo"])
    assert "published: ARPO, Qwen3-14B" in capsys.readouterr().out


def test_a_judge_beside_a_judge_and_a_rule_beside_a_rule_need_no_remark():
    def remark(benchmark, **checker):
        return judge_note(
            BenchmarkResults(path=Path(), stamp=make_stamp(benchmark=benchmark, checker=checker), results=())
        )

    assert remark("gaia", template_digest="t1") == ""
    assert remark("hotpotqa", part="TokenF1") == ""
    assert remark("gaia", part="GaiaMatch") != ""


def test_a_limit_that_is_no_share_is_refused(folder):
    with pytest.raises(ConfigError, match="`max_failed_tools` must be in"):
        show([str(folder), "--max-failed-tools", "5"])


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="The folder of an evaluation must hold"):
        show([str(tmp_path)])
