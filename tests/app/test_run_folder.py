import logging
import os

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.app.run_folder import choose_run_folder, resolve_checkpoint, start_of_run
from aepo_lightning.checkpoints import IDENTITY_KEY
from aepo_lightning.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in (
        *("AEPO_RUN_DIR", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"),
        *("WORLD_SIZE", "NODE_RANK", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


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


@pytest.mark.parametrize("ckpt_path", [None, "last"])
def test_processes_that_the_first_one_starts_take_its_folder(tmp_path, monkeypatch, ckpt_path):
    monkeypatch.setenv("AEPO_RUN_DIR", str(tmp_path / "of the first"))
    run(tmp_path / "x" / "a", 100)
    assert choose_run_folder(str(tmp_path), "x", None, ckpt_path).parent == tmp_path / "x", "the first one chooses"
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert choose_run_folder(str(tmp_path), "x", None, ckpt_path) == tmp_path / "of the first"


def test_runs_of_one_moment_get_folders_of_their_own(tmp_path):
    folders = [choose_run_folder(str(tmp_path), "x", None, None) for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(folder.is_dir() and not any(folder.iterdir()) for folder in folders)


def test_jobs_of_a_sweep_bear_their_number(tmp_path, monkeypatch):
    assert choose_run_folder(str(tmp_path), "x", None, None, 3).name.endswith("_3")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert choose_run_folder(str(tmp_path), "x", None, None, 3).name == "job-42_3"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2"}, "job-42"),
        ({"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "job-42"),
        ({"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "3"}, "job-42.3"),
        ({"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "4294967291"}, "job-42"),
        ({"TORCHELASTIC_RUN_ID": "42", "WORLD_SIZE": "2"}, "job-42"),
        ({"SLURM_JOB_ID": "42", "TORCHELASTIC_RUN_ID": "42", "WORLD_SIZE": "2"}, "job-42"),
        ({"SLURM_JOB_ID": "42", "TORCHELASTIC_RUN_ID": "b", "WORLD_SIZE": "2"}, "job-42-b"),
    ],
)
def test_launchers_that_start_every_process_name_the_folder(tmp_path, monkeypatch, variables, name):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    for rank in (0, 1):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        assert choose_run_folder(str(tmp_path), "x", None, None) == tmp_path / "x" / name


def test_single_processes_in_one_allocation_do_not_share_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    names = [choose_run_folder(str(tmp_path), "x", None, None).name for _ in range(2)]
    assert names == ["job-42", "job-42-2"]


@pytest.mark.parametrize("variable", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_job_that_its_launcher_starts_again_goes_on(tmp_path, monkeypatch, caplog, variable):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    folder = choose_run_folder(str(tmp_path), "x", None, None)
    assert start_of_run(folder, None) is None
    monkeypatch.setenv(variable, "1")
    assert start_of_run(folder, None) is None, "it had not begun"
    assert choose_run_folder(str(tmp_path), "x", None, None) == run(folder, 100)
    with caplog.at_level(logging.INFO):
        assert start_of_run(folder, None) == "last"
    assert f"started this job again: it goes on in {folder}" in caplog.text
    assert start_of_run(folder, "other.ckpt") == "other.ckpt"
    checkpoint(folder, 200)
    assert start_of_run(folder, "other.ckpt") == "last"
    monkeypatch.setenv(variable, "0")
    assert start_of_run(folder, None) is None
    assert choose_run_folder(str(tmp_path), "x", None, None).name == "job-42-2"


def test_nodes_that_were_started_by_hand_must_be_told_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "0")
    with pytest.raises(ConfigError, match="`run_dir` must be given"):
        choose_run_folder(str(tmp_path), "x", None, None)
    assert choose_run_folder("runs", "x", str(tmp_path / "own"), None) == tmp_path / "own"


@pytest.mark.parametrize("name", ["..", "/etc", "", None, "a/../../b"])
def test_a_name_that_leads_out_of_the_root_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="`name` must be the name of a folder below"):
        choose_run_folder(str(tmp_path), name, None, None)


def test_numbers_are_names_too(tmp_path):
    assert choose_run_folder(str(tmp_path), 2024, None, None).parent == tmp_path / "2024"
    assert choose_run_folder("runs", "x", tmp_path / "7", None) == tmp_path / "7"


def test_paths_are_read_as_a_shell_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", "own")
    assert choose_run_folder("runs", "x", "~/runs/a", None) == tmp_path / "runs" / "a"
    assert choose_run_folder("~/$MINE", "x", None, None).parent == tmp_path / "own" / "x"
    assert resolve_checkpoint(tmp_path, f"~/{checkpoint(tmp_path / 'c', 100).relative_to(tmp_path)}").epoch == 3


@pytest.mark.parametrize("run_dir", ["", " ", "$NOT_THERE/x", "~nobody-of-this-name/x"])
def test_paths_that_name_nothing_are_refused(run_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="`run_dir` must name"):
        choose_run_folder("runs", "x", run_dir, None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    for run_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"file.* must be a path that can be written, but: .*run_dir="):
            choose_run_folder("runs", "x", str(run_dir), None)
    with pytest.raises(ConfigError, match="must be a path that can be written"):
        choose_run_folder(str(tmp_path / "file"), "x", None, None)


def test_the_folder_of_a_run_is_no_checkpoint(tmp_path):
    checkpoint(run(tmp_path / "a", 100), 200)
    with pytest.raises(ConfigError, match=rf"is the folder of a run\. Write run_dir={tmp_path / 'a'} ckpt_path=last"):
        resolve_checkpoint(tmp_path, str(tmp_path / "a"))


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
