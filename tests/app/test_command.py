import asyncio
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aepo_lightning.app import command
from aepo_lightning.app.command import explain_bad_overrides, quieten_libraries
from aepo_lightning.attempts import attempts
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from tests.support.builders import tiny_policy
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
    assert explain_bad_overrides(["algorithm=grpo", "+experiment=stability", "seed=3"]) is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--multirun", "algorithm=grpo,grppo"], "`algorithm` must be one of aepo, .* but got grppo"),
        (["--cfg", "job", "trainer.max_epoch=3"], r"Did you mean `trainer\.max_epochs`"),
        (["trainer.max_epoch=3", "--multirun", "seed=1,2"], r"Did you mean `trainer\.max_epochs`"),
        (["model=hf"], r"`model\.name_or_path` must be given, but got nothing\. Write model\.name_or_path=VALUE\."),
        (["--multirun", "model=tiny_qwen3,hf"], r"`model\.name_or_path` must be given"),
    ],
)
def test_overrides_are_checked_beside_hydras_flags(words, named):
    assert re.search(named, explain_bad_overrides(words))


@pytest.mark.parametrize(
    "words",
    [
        ["--multirun", "algorithm=grpo,aepo", "seed=range(1,4)"],
        ["--cfg", "job", "model=hf"],
        ["--help"],
        ["--config-path", "elsewhere", "a.b=3"],
    ],
    ids=lambda words: words[0],
)
def test_flags_alone_are_no_mistake(words):
    assert explain_bad_overrides(words) is None


def test_options_of_another_folder_are_known(tmp_path):
    folder = tmp_path / "my conf=x"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("name_or_path: somewhere\n")
    assert explain_bad_overrides(["--config-dir", str(folder), "model=mine"]) is None
    assert "Did you mean `mine`" in explain_bad_overrides(["--config-dir", str(folder), "model=min"])


@pytest.mark.slow
def test_help_lists_groups_and_the_keys_that_are_changed_most():
    done = train("--help", "seed=7")
    assert done.returncode == 0, done.stderr
    for text in ("  algorithm   aepo aepo_official", "  model       hf ", "seed=7", "trainer.max_epochs=60"):
        assert text in done.stdout
    assert " _base" not in done.stdout
    assert "_eight_gpus" not in done.stdout
    assert len(done.stdout.splitlines()) < 45, "not the whole configuration"


@pytest.mark.slow
def test_a_wrong_override_ends_the_command_with_one_message():
    command = [sys.executable, "train.py", "trainer.max_epoch=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert "trainer.max_epochs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_plan_prints_memory_and_batches_and_exits_cleanly_without_weights():
    done = train("+experiment=aepo_qwen3_14b", "plan=true")
    assert done.returncode == 0, done.stderr
    for word in ("14,768", "weights", "gradients", "optimiser", "Engine", "optimiser steps of the run", "Fits"):
        assert word in done.stdout


@pytest.mark.slow
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
    again = train(*SMALL, *root, "trainer.max_epochs=3", "ckpt_path=last")
    assert again.returncode == 0, again.stderr
    assert list((tmp_path / "x").iterdir()) == [folder]
    second = json.loads((folder / "report.json").read_text())
    assert second["before"] == first["before"], "the first evaluation is kept, not made again"
    assert (folder / "rollouts" / "train-00002-rank0.jsonl").is_file(), "the third iteration was rolled out"


OWN = [
    "model=hf",
    "data=jsonl",
    "tools=python",
    "tools.python.isolation=unsafe",
    "coldstart=none",
    "data.questions_per_iteration=2",
    "experience.questions_per_step=2",
    "algorithm.budget=2",
    "rollout.sampling.max_response_tokens=16",
    "engine.max_model_len=2048",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "num_threads=1",
]


@pytest.fixture
def own(tmp_path):
    policy = tiny_policy(tokenizer=build_byte_tokenizer(), max_position_embeddings=2048)
    policy.build_model().save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    rows = [json.dumps({"question": f"{number} + 1?", "answer": number + 1}) + "\n" for number in range(3)]
    (tmp_path / "my.jsonl").write_text("".join(rows))
    return [*OWN, f"model.name_or_path={tmp_path / 'model'}", f"data.task.path={tmp_path / 'my.jsonl'}"]


def test_a_model_and_questions_of_ones_own_run_without_validation(own, tmp_path):
    done = train(*own, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "is zero" not in done.stderr, "no warning of a loader without batches"
    assert len((tmp_path / "run" / "rollouts" / "train-00001-rank0.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "run" / "report.json").read_text())["after"] == {}
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


@pytest.mark.slow
def test_questions_of_ones_own_are_validated(own, tmp_path):
    (tmp_path / "val.jsonl").write_text('{"question": "1 + 1?", "answer": 2}\n')
    settings = [f"data.task.val_path={tmp_path / 'val.jsonl'}", "evaluation.num_samples=2", "evaluation.pass_at=[1,2]"]
    done = train(*own, *settings, "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "val/pass@2" in json.loads((tmp_path / "run" / "report.json").read_text())["after"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.name_or_path=/no/such/folder", "ConfigError: `name_or_path` must be a folder"),
        ("data.task.path=no.jsonl", "DataError: `path` must name a file, but got 'no.jsonl'"),
    ],
)
def test_a_mistyped_path_ends_the_command_with_one_message(own, tmp_path, override, named):
    done = train(*own, override, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr


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


def test_an_attempt_that_is_made_again_prints_no_line_of_its_own(caplog):
    async def fail_once():
        number = 0
        end = asyncio.get_running_loop().time() + 60
        async for attempt in attempts(lambda _: True, max_attempts=2, backoff_s=0.001, ends_at=end):
            with attempt:
                number += 1
                if number == 1:
                    raise ConnectionError
        return number

    quieten_libraries()
    assert asyncio.run(fail_once()) == 2
    assert not caplog.records


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_no_warning_comes_from_the_first_process_alone(monkeypatch, is_first):
    levels = {}
    monkeypatch.setattr(command, "is_first_process", lambda: is_first)
    monkeypatch.setattr(logging.Logger, "setLevel", lambda logger, level: levels.update({logger.name: level}))
    quieten_libraries()
    assert (levels.get("aepo_lightning") == logging.WARNING) is not is_first
