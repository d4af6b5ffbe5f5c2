"""`aepo-replay` reproduces what a run saved, and a run that was killed goes on with what it had."""

import io
import json
import shutil
import time

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from aepo_lightning.app.replay import Replay, render, replay_run
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.rollout import RolloutJournal
from tests.support.commands import Command, run_command

SMALL = [
    "coldstart.num_steps=3",
    "coldstart.batch_size=4",
    "data.questions_per_iteration=4",
    "data.num_val_questions=2",
    "experience.questions_per_step=2",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=10",
    "callbacks.checkpoint.every_n_epochs=1",
    "algorithm.budget=4",
    "model.architecture.num_hidden_layers=1",
    "num_threads=1",
]


def start(*overrides):
    return Command("train.py", *SMALL, *overrides)


def finish(process):
    assert process.wait().returncode == 0, process.stderr


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    finish(start(f"run_dir={folder}"))
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def trees_of(folder, iteration):
    return list(RolloutJournal(folder / "rollouts").read(f"train-{iteration:05d}-rank0"))


def test_every_saved_tree_is_reproduced_token_by_token(run):
    replays = list(replay_run(run))
    assert len(replays) == 12
    assert {replay.name for replay in replays} == {f"train-0000{i}-rank0" for i in range(3)}
    assert all(replay.num_tokens > 0 for replay in replays)
    assert [replay.difference for replay in replays] == [None] * 12


def test_one_tree_of_one_iteration_can_be_asked_for(run):
    tree = trees_of(run, 1)[2]
    (replay,) = replay_run(run, ["train-00001-rank0"], tree.question.question_id)
    assert (replay.question_id, replay.difference) == (tree.question.question_id, None)


def test_weights_are_found_in_checkpoints_and_the_cold_start_too(copy):
    shutil.rmtree(copy / "rollouts" / "weights")
    (first, *_) = replay_run(copy, ["train-00000-rank0"])
    assert first.difference is None
    trees = trees_of(copy, 2)
    (later, *_) = replay_run(copy, ["train-00002-rank0"])
    assert later.difference is None
    (copy / "checkpoints" / "iteration0001.ckpt").unlink()
    saved = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    with pytest.raises(ConfigError, match=rf"after {trees[0].weights_version} optimiser steps must have been kept"):
        list(replay_run(copy, ["train-00002-rank0"]))
    for tree in trees:
        tree.weights_version = saved
    path = RolloutJournal(copy / "rollouts").path("train-00002-rank0")
    path.unlink()
    for tree in trees:
        RolloutJournal(copy / "rollouts").append("train-00002-rank0", tree)
    # The checkpoint was written one iteration later, so what it holds may or may not give the same trees.
    assert len(list(replay_run(copy, ["train-00002-rank0"]))) == len(trees)


def test_other_weights_are_told_apart_and_the_place_is_named(copy, run):
    other = copy / "other.safetensors"
    weights = WeightsArchive(run / "rollouts" / "weights").load(0)
    save_file({name: 4 * weight for name, weight in weights.items()}, other)
    found = [replay.difference for replay in replay_run(copy, ["train-00000-rank0"], weights=other)]
    assert any(difference is not None and "trajectory r/" in difference for difference in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["train-9"]}, "must be one of the files"),
        ({"question_id": "nobody"}, "No tree in .* fits"),
    ],
    ids=["name", "question"],
)
def test_what_is_not_there_is_named(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        list(replay_run(run, **arguments))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"must have a config.yaml"):
        list(replay_run(tmp_path))


def test_the_command_prints_a_table_and_its_status_tells(copy):
    done = run_command("-m", "aepo_lightning.app.replay", copy)
    assert done.returncode == 0, done.stderr
    assert "train-00002-rank0" in done.stdout
    path = RolloutJournal(copy / "rollouts").path("train-00001-rank0")
    lines = path.read_text().splitlines()
    plain = json.loads(lines[0])
    plain["segments"][1]["token_ids"][0] += 1
    del plain["checksum"]  # the line is whole, and another policy's
    path.write_text("\n".join([json.dumps(plain), *lines[1:]]) + "\n")
    done = run_command("-m", "aepo_lightning.app.replay", copy)
    assert done.returncode == 1
    assert "trajectory r/0" in done.stdout


def test_ids_are_text_in_the_table():
    hostile = "[bold]a[/bold]\x1b[2J\u202e"
    replay = Replay(name="a", question_id=hostile, num_tokens=1, difference="token 1 of 2: [1] is [2]")
    console = Console(file=io.StringIO(), width=200)
    console.print(render([replay]))
    assert r"'[bold]a[/bold]\x1b[2J\u202e': token 1 of 2: [1] is [2]" in console.file.getvalue()


def tokens_of(tree):
    """Question and trajectories. Entropies differ in the last bits with what else is in the engine's batch."""
    paths = [(leaf.seed_path, tree.token_ids(leaf.segment_id), leaf.reward.reward) for leaf in tree.leaves]
    return tree.question.question_id, str(paths)


def wait_for_steps(folder, name, number, process):
    path = RolloutJournal(folder / "rollouts").steps_path(name)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        assert process.returncode is None, process.stderr
        if path.is_file() and len(lines := path.read_text().splitlines()) >= number:
            return lines
        time.sleep(0.005)
    raise AssertionError(f"{path} did not grow to {number} lines")


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_rollout_keeps_what_was_generated(run, tmp_path):
    folder, name = tmp_path / "killed", "train-00001-rank0"
    slow = "engine._target_=tests.support.sleepy.SleepyEngine"
    process = start(f"run_dir={folder}", slow)
    try:
        wait_for_steps(folder, name, 25, process)
    finally:
        process.kill()
    steps = RolloutJournal(folder / "rollouts").steps_path(name).read_text().splitlines()
    finish(start(f"run_dir={folder}", slow, "ckpt_path=last"))
    assert not list((folder / "rollouts").glob("*.superseded-*"))
    assert not RolloutJournal(folder / "rollouts").steps_path(name).exists()
    for iteration in range(3):
        # The run that was never killed has the same trees, once each.
        whole, continued = trees_of(run, iteration), trees_of(folder, iteration)
        assert [tokens_of(tree) for tree in continued] == [tokens_of(tree) for tree in whole]
    generated = {tuple(t) for t in (json.loads(line).get("token_ids", ()) for line in steps[1:]) if t}
    kept = {tuple(s.token_ids) for tree in trees_of(folder, 1) for s in tree.segments}
    assert generated <= kept
