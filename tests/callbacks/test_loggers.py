"""Every logger that `logger=` names, in real runs of the command without a network."""

import csv
import json
import sys
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.build import build_logger
from aepo_lightning.errors import ConfigError
from tests.support.commands import run_command
from tests.support.killed_runs import TINY
from tests.support.paths import ROOT

PICTURES = {f"pictures/{name}" for name in ("tree_1", "tree_2", "entropy_1", "entropy_by_turn", "histograms")}
PICTURES |= {"entropy"}


def train(tmp_path, name, *overrides):
    if find_spec(name) is None and name not in ("csv",):
        pytest.skip(f"{name} is not installed")
    options = [f"logger={name}", "trainer.max_epochs=2", f"run_dir={tmp_path / 'run'}", *overrides]
    done = run_command("train.py", *TINY, *options, timeout=250)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return tmp_path / "run"


@pytest.mark.slow
def test_csv_has_every_number(tmp_path):
    with (train(tmp_path, "csv") / "csv" / "metrics.csv").open() as file:
        names = set(next(csv.reader(file)))
    assert {"rollout/entropy_p10", "train/importance_ratio_p99", "val/pass@1", "time/iteration_s"} <= names


@pytest.mark.slow
def test_mlflow_has_numbers_settings_pictures_and_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = train(tmp_path, "mlflow") / "mlruns"
    [run] = [path.parent for path in folder.rglob("artifacts")]
    metrics = {str(path.relative_to(run / "metrics")) for path in (run / "metrics").rglob("*") if path.is_file()}
    assert {"rollout/entropy_p10", "train/loss", "val/pass1"} <= metrics
    assert (run / "params" / "algorithm").read_text() == "aepo"
    found = {str(path.parent.relative_to(run / "artifacts")) for path in run.rglob("*.png")}
    assert found == PICTURES
    table = json.loads(next((run / "artifacts" / "pictures" / "questions").glob("*.json")).read_text())
    assert table["columns"][0] == "question"
    assert len(table["data"]) == 2
    assert list((run / "artifacts" / "rollout" / "trajectories").glob("*.md"))


@pytest.mark.slow
def test_wandb_has_numbers_settings_pictures_and_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train(tmp_path, "wandb", "logger.offline=true")
    [files] = [path for path in folder.rglob("offline-run-*") if path.is_dir()]
    media = {path.name.rsplit("_", 2)[0] for path in (files / "files" / "media" / "images").rglob("*.png")}
    assert {name.rpartition("/")[2] for name in PICTURES} <= media
    tables = {
        path.name.split(".")[0].rsplit("_", 2)[0] for path in (files / "files" / "media" / "table").rglob("*.json")
    }
    assert {"questions", "trajectories"} <= tables
    record = next(files.glob("run-*.wandb")).read_bytes()
    assert b"rollout/entropy_p10" in record
    assert b"penalty_per_step" in record


@pytest.mark.slow
def test_trackio_has_numbers_settings_pictures_and_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(tmp_path, "trackio", "logger.name=mine")
    database = b"".join(path.read_bytes() for path in (tmp_path / "trackio").glob("*.db*"))
    for name in ("rollout/entropy_p10", "val/pass@1", "penalty_per_step", "pictures/questions", *PICTURES):
        assert name.encode() in database, name
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) >= len(PICTURES)


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_a_logger_whose_package_is_missing_is_refused_by_name(name, tmp_path, monkeypatch):
    if name == "trackio":
        monkeypatch.setitem(sys.modules, "trackio", None)
    elif find_spec(name) is not None:
        pytest.skip("it is there, and Lightning has looked already")
    settings = OmegaConf.load(ROOT / "conf" / "logger" / f"{name}.yaml")
    with pytest.raises(ConfigError, match=name):
        build_logger(OmegaConf.create({"logger": settings, "name": "quickstart"}), tmp_path)
