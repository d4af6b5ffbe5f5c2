"""`aepo-eval show`: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.evaluation.published import published_scores_of, rule_note, saved_suite
from aepo_lightning.app.evaluation.show import show
from aepo_lightning.app.saved_config import save_config
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


OWN = """
suite:
  mine:
    _target_: my.Benchmark
    judge: strict
    published:
      _target_: aepo_lightning.evaluation.benchmark.published_scores
      rows: [[AEPO, Own-1B, pass@1, "", 12.5, own]]
      sources: {own: {_target_: aepo_lightning.evaluation.benchmark.Publication, source: Our table}}
  listed:
    published:
      - {_target_: aepo_lightning.evaluation.benchmark.PublishedScore, method: AEPO, model: M, value: 1.0, source: S}
  foreign:
    published: {_target_: os.getcwd}
  hidden:
    published: ["${suite.foreign.published}"]
"""


def test_published_numbers_of_an_own_benchmark_come_from_the_folder_and_nothing_else_is_called(tmp_path, capsys):
    save_config(OmegaConf.create(OWN), tmp_path / "evaluation.yaml")
    write_evaluation(tmp_path, make_results("11", benchmark="mine"), benchmark="mine", num_samples=2)
    show([str(tmp_path)])
    text = capsys.readouterr().out
    for piece in ("published: AEPO, Own-1B", "12.5", "! mine: these verdicts are a rule's", "the judge 'strict'"):
        assert piece in text
    suite = saved_suite(tmp_path)
    assert [each.value for each in published_scores_of("listed", "AEPO", suite)] == [1.0]
    assert [published_scores_of(name, "AEPO", suite) for name in ("foreign", "hidden", "nowhere")] == [()] * 3


def test_a_judge_beside_a_judge_and_a_rule_beside_a_rule_need_no_remark():
    def remark(benchmark, **checker):
        return rule_note(
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
