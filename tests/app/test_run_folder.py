import os

import pytest

from aepo_lightning.app.run_folder import choose_run_folder, resolve_checkpoint
from aepo_lightning.errors import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("AEPO_RUN_DIR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    # What the code under test sets is taken away again by the monkeypatch of this name.
    monkeypatch.setenv("AEPO_RUN_DIR", "")


def checkpoint(folder, age):
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (age, age))
    return path


def test_a_folder_of_the_user_wins(tmp_path):
    assert choose_run_folder("runs", "x", str(tmp_path), "last") == tmp_path


def test_processes_of_one_job_share_a_folder(tmp_path):
    first = choose_run_folder(str(tmp_path), "x", None, None)
    assert choose_run_folder(str(tmp_path), "y", None, None) == first


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_launchers_that_start_every_process_name_the_folder(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "42")
    assert choose_run_folder(str(tmp_path), "x", None, None) == tmp_path / "x" / "job-42"


def test_last_is_the_newest_checkpoint_of_the_experiment(tmp_path):
    checkpoint(tmp_path / "x" / "b", 100)
    newest = checkpoint(tmp_path / "x" / "a", 200)
    checkpoint(tmp_path / "other" / "c", 300)
    folder = choose_run_folder(str(tmp_path), "x", None, "last")
    assert folder == tmp_path / "x" / "a"
    assert resolve_checkpoint(folder, "last") == newest


def test_last_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs a checkpoint below"):
        choose_run_folder(str(tmp_path), "x", None, "last")


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_checkpoint(tmp_path, str(tmp_path / "gone.ckpt"))


def test_no_checkpoint_is_none(tmp_path):
    assert resolve_checkpoint(tmp_path, None) is None
