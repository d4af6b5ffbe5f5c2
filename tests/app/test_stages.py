"""Stages take what is in the folder if it is of this run, and a run lets go of what it took."""

import logging
import os
from functools import cache
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from aepo_lightning.app import stages
from aepo_lightning.app.build import Run
from aepo_lightning.checkpoints import CheckpointSummary
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.hf_folder import MARK, FolderWriter
from tests.support.composed import composed

TINY = [
    *("model.architecture.num_hidden_layers=1", "model.architecture.intermediate_size=8"),
    *("model.architecture.hidden_size=8", "model.architecture.head_dim=4", "num_threads=1"),
]


whole = cache(composed)


def settings(folder, *overrides):
    cfg = whole(*TINY).copy()
    for key, value in (each.split("=") for each in (f"run_dir={folder}", *overrides)):
        OmegaConf.update(cfg, key, int(value) if value.isdigit() else value)
    return cfg


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("AEPO_RUN_DIR", "SLURM_JOB_ID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


@pytest.fixture
def trained(monkeypatch):
    """The seeds with which a cold start was trained."""
    seeds = []

    def train(cfg, policy, folder, target, made_of):
        seeds.append(cfg.seed)
        writer = FolderWriter(target=target, source=policy, overwrite=True, made_of=made_of)
        writer.write_model(policy.build_model().named_parameters())

    monkeypatch.setattr(stages, "_train_cold_start", train)
    return seeds


def start(folder, *overrides):
    with stages.open_run(settings(folder, *overrides)) as record:
        stages.cold_start(record)
    return record


def test_a_cold_start_of_the_same_is_taken_and_of_another_made_again(tmp_path, trained, caplog):
    start(tmp_path)
    start(tmp_path, "ckpt_path=last")
    assert trained == [0]
    with caplog.at_level(logging.INFO):
        start(tmp_path, "ckpt_path=last", "seed=1")
    assert trained == [0, 1]
    assert "cold start in the folder was made of other configuration: it is made again" in caplog.text
    (tmp_path / "coldstart" / MARK).write_text('{"library": "aepo-lightning"}')
    start(tmp_path, "ckpt_path=last", "seed=2")
    assert trained == [0, 1], "one without digests was made before there were any"


def test_a_run_past_its_cold_start_keeps_it(tmp_path, trained):
    record = start(tmp_path)
    record.checkpoint = CheckpointSummary(
        path=tmp_path, epoch=1, global_step=2, identity={"architecture": {"model_type": "qwen3"}}
    )
    record.cfg.data.task.num_steps = 2
    with pytest.raises(Exception, match="must hold the policy of this run"):
        stages.cold_start(record)  # it came as far as the check of the checkpoint
    assert trained == [0]


def test_an_evaluation_of_the_same_is_taken_and_of_another_made_again(tmp_path, monkeypatch):
    values = iter(range(10))
    monkeypatch.setattr(stages, "_evaluate", lambda *_: {"val/reward": next(values)})

    def before(*overrides):
        with stages.open_run(settings(tmp_path, *overrides)) as record:
            stages.evaluate_before(record, object.__new__(Run))
        return record.report.before["val/reward"]

    assert [before(), before("ckpt_path=last"), before("ckpt_path=last", "evaluation.num_samples=2")] == [0, 0, 1]
    (tmp_path / "evaluation_before.json").write_text('{"val/reward": 7}')
    assert before("ckpt_path=last") == 7, "one without digests was made before there were any"
    (tmp_path / "evaluation_before.json").write_text("{")
    assert before("ckpt_path=last") == 2, "one that cannot be read is made again"


def test_a_time_limit_of_a_run_that_ends_with_its_cold_start_is_refused(tmp_path):
    cfg = settings(tmp_path, "time_limit_s=60")
    cfg.coldstart = {"data": {}, "only": True}
    with pytest.raises(ConfigError, match=r"`time_limit_s` must be null .* but got 60.* coldstart\.max_time"):
        stages.open_run(cfg)
    assert not any(tmp_path.iterdir())


def test_two_runs_of_one_folder_one_after_the_other_and_at_once(tmp_path):
    with stages.open_run(settings(tmp_path)):
        assert os.environ["AEPO_RUN_DIR"] == str(tmp_path)
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            stages.open_run(settings(tmp_path, "ckpt_path=last"))
    assert "AEPO_RUN_DIR" not in os.environ
    with pytest.raises(ConfigError, match="holds a run already"):
        stages.open_run(settings(tmp_path, "model.architecture.hidden_size=96"))
    assert "hidden_size: 8" in (tmp_path / "config.yaml").read_text()
    stages.open_run(settings(tmp_path, "ckpt_path=last")).close()


def test_what_a_run_left_in_the_environment_for_its_processes_is_taken_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with stages.open_run(settings(tmp_path)):
        os.environ |= {"LOCAL_RANK": "0", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    assert [os.environ.get(name) for name in ("LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE")] == [None, None, "1"]


@pytest.mark.parametrize(("evaluation", "left"), [(200.0, 600.0), (1.0, 800.0), (None, 800.0)])
def test_a_time_limit_leaves_time_for_the_end_of_the_run(tmp_path, monkeypatch, evaluation, left):
    limits = []
    monkeypatch.setattr(stages, "TimeLimit", lambda seconds: limits.append(seconds) or "limit")
    run = object.__new__(Run)
    trainer = SimpleNamespace(callbacks=["checkpoint"], fit=lambda *_, **__: None, callback_metrics={}, max_epochs=1)
    for name, value in (("trainer", trainer), ("module", None), ("datamodule", None)):
        object.__setattr__(run, name, value)
    with stages.open_run(settings(tmp_path)) as record:
        stages.fit(record, run)
        assert trainer.callbacks == ["checkpoint"]
        record.cfg.time_limit_s = 1000
        record.report.seconds = {} if evaluation is None else {"evaluation before": evaluation}
        monkeypatch.setattr(stages, "perf_counter", lambda: record.start + 100)
        stages.fit(record, run)
    assert trainer.callbacks == ["limit", "checkpoint"]
    # 100 s are spent; half as much again as the evaluation before is kept, a tenth of the limit at least.
    assert limits == [left]
