import logging
import os

import pytest
import torch

from aepo_lightning.app.run_folder import choose_run_folder, resolve_checkpoint
from aepo_lightning.checkpoints import IDENTITY_KEY
from aepo_lightning.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("AEPO_RUN_DIR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    # What the code under test sets is taken away again by the monkeypatch of this name.
    monkeypatch.setenv("AEPO_RUN_DIR", "")


def run(folder, age):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").touch()
    os.utime(folder / "config.yaml", (age, age))
    return folder


def checkpoint(folder, age, name="last.ckpt", epoch=3, **identity):
    path = folder / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "global_step": 2 * epoch, IDENTITY_KEY: {"format": 1} | identity}, path)
    for each in (path, path.parent):
        os.utime(each, (age, age))
    return path


def test_a_folder_of_the_user_wins(tmp_path):
    assert choose_run_folder("runs", "x", str(tmp_path), "last") == tmp_path


def test_processes_of_one_job_share_a_folder(tmp_path):
    first = choose_run_folder(str(tmp_path), "x", None, None)
    assert choose_run_folder(str(tmp_path), "y", None, None) == first


def test_processes_of_a_continued_job_share_a_folder(tmp_path):
    older, newest = run(tmp_path / "x" / "a", 100), run(tmp_path / "x" / "b", 200)
    assert choose_run_folder(str(tmp_path), "x", None, "last") == newest
    os.utime(older / "config.yaml", (300, 300))
    assert choose_run_folder(str(tmp_path), "x", None, "last") == newest


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_launchers_that_start_every_process_name_the_folder(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "42")
    assert choose_run_folder(str(tmp_path), "x", None, None) == tmp_path / "x" / "job-42"


def test_a_job_that_is_started_again_continues_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    own = run(tmp_path / "x" / "job-42", 100)
    run(tmp_path / "x" / "job-43", 200)
    assert choose_run_folder(str(tmp_path), "x", None, "last") == own


def test_last_is_the_run_that_was_at_work_last(tmp_path):
    run(tmp_path / "x" / "b", 150)
    newest = checkpoint(run(tmp_path / "x" / "a", 100), 200)
    checkpoint(run(tmp_path / "other" / "c", 300), 300)
    folder = choose_run_folder(str(tmp_path), "x", None, "last")
    assert folder == tmp_path / "x" / "a"
    assert resolve_checkpoint(folder, "last").path == newest


def test_the_newest_run_is_continued_even_if_it_was_killed_before_its_first_save(tmp_path, caplog):
    checkpoint(run(tmp_path / "x" / "a", 100), 200)
    newest = run(tmp_path / "x" / "b", 300)
    assert choose_run_folder(str(tmp_path), "x", None, "last") == newest
    with caplog.at_level(logging.INFO):
        assert resolve_checkpoint(newest, "last") is None
    assert f"No checkpoint in {newest} yet: starting at the first iteration" in caplog.text


def test_what_a_run_continues_from_is_in_the_log(tmp_path, caplog):
    path = checkpoint(run(tmp_path / "a", 100), 200)
    with caplog.at_level(logging.INFO):
        resolve_checkpoint(tmp_path / "a", "last")
    assert f"Continuing after iteration 3 (optimiser step 6) of {path}" in caplog.text


def test_last_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs a run below"):
        choose_run_folder(str(tmp_path), "x", None, "last")


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_checkpoint(tmp_path, str(tmp_path / "gone.ckpt"))


def test_no_checkpoint_is_none(tmp_path):
    assert resolve_checkpoint(tmp_path, None) is None


def test_a_damaged_last_checkpoint_is_refused_with_the_next_best_one(tmp_path):
    good = checkpoint(tmp_path, 100, "iteration0001.ckpt")
    bad = checkpoint(tmp_path, 200, "iteration0003.ckpt")
    (bad.parent / "last.ckpt").symlink_to(bad.name)
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{bad} must be a whole part .*The next best is ckpt_path={good}"):
        resolve_checkpoint(tmp_path, "last")


def test_ranks_that_torchrun_gave_no_id_must_be_told_their_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="`run_dir` must be given where torchrun has no id"):
        choose_run_folder(str(tmp_path), "x", None, None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "job-" not in choose_run_folder(str(tmp_path), "x", None, None).name
    monkeypatch.delenv("AEPO_RUN_DIR")
