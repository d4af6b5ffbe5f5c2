import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aepo_lightning.app.command import explain_bad_overrides
from tests.support.commands import run_command
from tests.support.paths import ROOT

SMALL = [
    "coldstart.num_steps=3",
    "coldstart.batch_size=4",
    "data.questions_per_iteration=2",
    "data.num_val_questions=2",
    "experience.questions_per_step=2",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "algorithm.budget=4",
    "model.architecture.num_hidden_layers=1",
    "num_threads=1",
]


def train(*overrides):
    return run_command("train.py", *overrides)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("trainer.max_epoch=3", ["trainer.max_epoch", "trainer.max_epochs"]),
        ("algorithm=grppo", ["grppo", "grpo", "aepo_official"]),
        ("data.task.num_step=3", ["data.task.num_step", "data.task.num_steps"]),
    ],
    ids=["key", "option", "nested-key"],
)
def test_a_wrong_override_names_the_key_and_the_nearest_valid_ones(override, names):
    problem = explain_bad_overrides([override])
    assert problem is not None
    assert all(name in problem for name in names)


def test_right_overrides_have_no_problem():
    assert explain_bad_overrides(["algorithm=grpo", "+experiment=collapse", "seed=3"]) is None


def test_a_wrong_override_ends_the_command_with_one_message():
    command = [sys.executable, "train.py", "trainer.max_epoch=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert "trainer.max_epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_prints_memory_and_batches_and_exits_cleanly_without_weights():
    done = train("+experiment=aepo_qwen3_14b", "plan=true")
    assert done.returncode == 0, done.stderr
    for word in ("14,768", "weights", "gradients", "optimiser", "Engine", "optimiser steps of the run", "Fits"):
        assert word in done.stdout


def test_fast_dev_run_goes_through_all_three_stages(tmp_path):
    done = train(*SMALL, "trainer.fast_dev_run=true", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "pass@1" in done.stdout


def test_a_run_leaves_table_logs_curve_checkpoints_and_policy_and_continues_from_last(tmp_path):
    root = [f"output_root={tmp_path}", "name=x"]
    done = train(*SMALL, *root)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "x").iterdir()
    for name in ("checkpoints/last.ckpt", "checkpoints/entropy.png", "policy/model.safetensors", "config.yaml"):
        assert (folder / name).is_file(), name
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    first = json.loads((folder / "report.json").read_text())
    assert {"val/pass@1", "val/pass@4", "val/reward", "val/entropy"} <= set(first["after"])
    assert set(first["after"]) == set(first["before"])
    again = train(*SMALL, *root, "trainer.max_epochs=3", "ckpt_path=last")
    assert again.returncode == 0, again.stderr
    assert list((tmp_path / "x").iterdir()) == [folder]
    second = json.loads((folder / "report.json").read_text())
    assert second["before"] == first["before"], "the first evaluation is kept, not made again"
    assert (folder / "rollouts" / "train-00002-rank0.jsonl").is_file(), "the third iteration was rolled out"


def test_continuing_without_a_checkpoint_says_what_to_do(tmp_path):
    done = train(*SMALL, f"output_root={tmp_path}", "ckpt_path=last")
    assert done.returncode == 1
    assert "Start a new run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_official_files_run_the_whole_loop_on_a_few_real_questions(tmp_path):
    if not (
        Path(os.environ.get("AEPO_DATA_DIR", ROOT.parent / "shared" / "data")) / "hard_search_1k.parquet"
    ).is_file():
        pytest.skip("the official files are not on this machine; set AEPO_DATA_DIR")
    done = train(
        "+experiment=official_files",
        *([] if shutil.which("bwrap") else ["tools.python.isolation=unsafe"]),
        "data.questions_per_iteration=2",
        "data.num_val_questions=2",
        "experience.questions_per_step=2",
        "algorithm.budget=2",
        "rollout.sampling.max_response_tokens=48",
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
        "model.architecture.num_hidden_layers=1",
        "num_threads=1",
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    stored = (tmp_path / "run" / "rollouts" / "train-00000-rank0.jsonl").read_text().splitlines()
    assert len(stored) == 2
