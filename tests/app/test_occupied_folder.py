"""A folder is new, continued, or refused."""

import logging

import pytest
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from aepo_lightning.app.occupied_folder import settle_with_folder
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.checkpoints import CheckpointSummary
from aepo_lightning.errors import ConfigError

SAVED = {
    "seed": 0,
    "ckpt_path": None,
    "model": {"architecture": {"hidden_size": 64}},
    "coldstart": {"num_steps": 5},
    "module": {"optimizer": {"lr": 1.0}},
}


def wanted(**changes):
    cfg = OmegaConf.create(SAVED)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


@pytest.fixture(autouse=True)
def first_process(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


@pytest.fixture
def folder(tmp_path):
    save_config(OmegaConf.create(SAVED), tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def checkpoint(folder):
    return CheckpointSummary(path=folder / "checkpoints" / "a.ckpt", epoch=1, global_step=2, identity={})


def test_a_new_folder_takes_any_configuration(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert settle_with_folder(wanted(seed=3), tmp_path, None) == wanted(seed=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "holds a run already; with this configuration"),
        ({"model__architecture__hidden_size": 96}, "\n  model.architecture.hidden_size: 64 -> 96\n"),
    ],
)
def test_a_folder_that_holds_a_run_is_refused_unless_it_is_continued(folder, changes, said):
    with pytest.raises(
        ConfigError, match=rf"(?s){said}.*add ckpt_path=last to run_dir={folder}; for a new run, choose"
    ):
        settle_with_folder(wanted(**changes), folder, None)


def test_a_damaged_configuration_does_not_hide_the_run(folder):
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="holds a run already; its configuration cannot be compared"):
        settle_with_folder(wanted(), folder, None)


def test_an_equal_configuration_goes_on_without_a_word(folder, caplog):
    with caplog.at_level(logging.INFO):
        cfg = wanted(ckpt_path="last")
        assert settle_with_folder(cfg, folder, checkpoint(folder)) == cfg
        assert settle_with_folder(wanted(), folder, checkpoint(folder)) == wanted(), "its own checkpoint, by its path"
    assert caplog.text == ""


def test_differences_are_printed_and_what_is_ignored_is_as_it_was(folder, caplog):
    with caplog.at_level(logging.INFO):
        cfg = wanted(ckpt_path="last", coldstart__num_steps=9, module__optimizer__lr=2.0)
        found = settle_with_folder(cfg, folder, checkpoint(folder))
    assert "  ignored   coldstart.num_steps: 5 -> 9 (the run is past its cold start)" in caplog.text
    assert "  applied   module.optimizer.lr: 1.0 -> 2.0" in caplog.text
    assert (found.coldstart.num_steps, found.module.optimizer.lr) == (5, 2.0)


def test_without_a_checkpoint_everything_is_applied(folder):
    cfg = wanted(ckpt_path="last", seed=4, coldstart__num_steps=9)
    assert settle_with_folder(cfg, folder, None) == cfg


def test_another_seed_in_the_folder_of_a_run_is_refused(folder):
    with pytest.raises(ConfigError, match=r"(?s)must keep what it is made of.*refused   seed: 0 -> 4"):
        settle_with_folder(wanted(ckpt_path="last", seed=4), folder, checkpoint(folder))


def test_a_new_run_from_a_checkpoint_is_compared_with_where_it_comes_from(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        settle_with_folder(wanted(seed=4), tmp_path / "new", checkpoint(folder))
    assert "applied   seed: 0 -> 4" in caplog.text
    with pytest.raises(ConfigError, match="hidden_size: 64 -> 96"):
        settle_with_folder(wanted(model__architecture__hidden_size=96), tmp_path / "new", checkpoint(folder))


@pytest.mark.parametrize("name", ["policy", "checkpoints", "coldstart", "report.json"])
def test_what_a_run_would_replace_is_not_lost(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"would lose {name}. Choose another folder"):
        settle_with_folder(wanted(ckpt_path="last"), tmp_path, None)


def test_other_processes_of_the_job_leave_the_judgement_to_the_first(folder, monkeypatch, caplog):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert settle_with_folder(wanted(), folder, None) == wanted()
    with caplog.at_level(logging.INFO):
        cfg = wanted(ckpt_path="last", coldstart__num_steps=9)
        assert settle_with_folder(cfg, folder, checkpoint(folder)).coldstart.num_steps == 5, "as the first one has it"
    assert caplog.text == ""


@pytest.mark.parametrize("key", ["coldstart__optimizer", "coldstart__num_steps", "model__seed"])
def test_what_a_foreign_folder_would_have_called_is_refused(tmp_path, key):
    evil = {"_target_": "os.mkdir", "path": str(tmp_path / "mark")}
    save_config(wanted(**{key: evil}), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"would call os\.mkdir"):
        settle_with_folder(wanted(ckpt_path="last"), tmp_path, checkpoint(tmp_path))
    assert not (tmp_path / "mark").exists()
