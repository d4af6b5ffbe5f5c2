"""The cold start on conversations by the command: killed and continued, on two ranks; and a policy learns by it."""

import json
from random import Random

import pytest
from safetensors.torch import load_file

from aepo_lightning.app.sft_data import export_good
from tests.support.commands import run_command
from tests.support.conversations import row_of, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = (
    "model.architecture.num_hidden_layers=1",
    "model.architecture.hidden_size=32",
    "num_threads=1",
    "callbacks=none",
)


def conversations(path, count=24):
    """Questions of the main job, each searched for once and answered."""
    random = Random(0)

    def places():
        return " ".join(f"e{random.randrange(16)}" for _ in range(3))

    rows = []
    for _ in range(count):
        call = f"<think> go </think> <search> e{random.randrange(16)} </search>"
        pairs = (("assistant", call), ("tool", places()), ("assistant", "<answer> \\boxed{ e1 } </answer>"))
        rows.append(row_of(("user", f"find e{random.randrange(16)} c{random.randrange(3)}"), *pairs))
    return write(path, rows)


def train(folder, path, *words, env=None, status=0):
    own = ("coldstart=sft", f"coldstart.data.path={path}", "coldstart.only=true", "coldstart.batch_size=4")
    parts = ("coldstart.num_epochs=2", "coldstart.steps_per_part=3", "coldstart.limits.val_fraction=0.1")
    found = run_command("train.py", *SMALL, *own, *parts, f"run_dir={folder}", *words, env=env, timeout=800)
    assert found.returncode == status, found.stderr[-3000:]
    return found


def weights(folder):
    return load_file(folder / "coldstart" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not disturbed, and its conversations."""
    folder = tmp_path_factory.mktemp("whole")
    path = conversations(folder / "a.jsonl")
    said = train(folder / "run", path)
    assert "24 rows, 24 used as 24 demonstrations" in said.stdout + said.stderr
    return folder / "run", path


KILLED = {
    "in a step": ("aepo_lightning.training.coldstart:ColdStartModule._refuse_non_finite", 8),
    "in a save": ("aepo_lightning.callbacks.atomic_checkpoint:put_in_place", 2),
    "before the policy is written": ("aepo_lightning.app.sft:write_together", 1),
}


@pytest.mark.parametrize(("where", "count"), KILLED.values(), ids=KILLED)
def test_a_run_that_was_killed_and_goes_on_ends_with_the_same_policy(whole, tmp_path, where, count):
    expected, path = whole
    killer = ("~callbacks.progress_bar", "+callbacks.progress_bar._target_=tests.support.killer.Killer")
    words = (*killer, f"+callbacks.progress_bar.where={where}", f"+callbacks.progress_bar.count={count}")
    train(tmp_path / "run", path, *words, status=-9)
    assert list((tmp_path / "run" / "coldstart_checkpoints").rglob("*.ckpt"))
    train(tmp_path / "run", path, "ckpt_path=last")
    found = weights(tmp_path / "run")
    assert {name: each.tolist() for name, each in found.items()} == {
        name: each.tolist() for name, each in weights(expected).items()
    }
    assert not (tmp_path / "run" / "coldstart_checkpoints").exists()


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_ranks_that_the_command_starts_train_the_policy_of_one_process_and_go_on(whole, tmp_path, strategy):
    expected, path = whole
    rollouts = ("data.questions_per_iteration=4", "data.num_val_questions=2", "experience.questions_per_step=2")
    short = ("algorithm.budget=2", "trainer.max_epochs=1", "rollout.sampling.max_response_tokens=24")
    next_stage = ("coldstart.only=false", *rollouts, *short) if strategy == "fsdp" else ()
    train(tmp_path / "run", path, "trainer.devices=2", f"strategy={strategy}", *next_stage)
    assert (tmp_path / "run" / "report.json").exists() == (strategy == "fsdp")
    for name, weight in weights(expected).items():
        assert (weights(tmp_path / "run")[name] - weight).abs().max() < 1e-4, name


def test_what_is_there_is_taken_and_changed_conversations_are_learned_anew(whole, tmp_path):
    folder, path = tmp_path / "run", conversations(tmp_path / "a.jsonl", 8)
    train(folder, path)
    first = weights(folder)
    made = (folder / "coldstart" / "config.json").stat().st_mtime_ns
    train(folder, path, "ckpt_path=last")
    assert (folder / "coldstart" / "config.json").stat().st_mtime_ns == made
    conversations(tmp_path / "a.jsonl", 9)
    said = train(folder, path, "ckpt_path=last")
    assert "was made of other files" in said.stdout + said.stderr
    assert any((weights(folder)[name] != weight).any() for name, weight in first.items())


def test_a_policy_learns_from_the_good_trajectories_of_a_run(tmp_path):
    task = ("data.task.num_places=4", "data.task.num_steps=1", "num_threads=1", "callbacks=none")
    rollouts = ("data.questions_per_iteration=64", "data.num_val_questions=32", "evaluation.num_samples=2")
    rest = (*rollouts, "evaluation.pass_at=[1]", "trainer.max_epochs=1", "coldstart.batch_size=32")
    first = run_command("train.py", *task, *rest, "coldstart.num_steps=200", f"run_dir={tmp_path / 'a'}", timeout=800)
    assert first.returncode == 0, first.stderr[-3000:]
    said = export_good(tmp_path / "a", [f"target={tmp_path / 'good.jsonl'}", "per_question=8"])
    own = ("coldstart=sft", f"coldstart.data.path={tmp_path / 'good.jsonl'}", "coldstart.num_epochs=40")
    again = run_command("train.py", *task, *rest, *own, f"run_dir={tmp_path / 'b'}", timeout=800)
    assert again.returncode == 0, again.stderr[-3000:]
    before, after = (json.loads((tmp_path / run / "evaluation_before.json").read_text()) for run in "ab")
    # One that was never trained has -1 for its form. With the form right and a guess among three exits it has a third.
    assert after["val/reward"] > 0.2, (said, before["val/reward"])
