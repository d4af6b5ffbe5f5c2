"""Runs of the command that are killed and continued, and what is compared of them."""

import json
import signal
import time

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.commands import Command, run_command
from tests.support.recording import is_measured

TINY = [
    "coldstart.num_steps=3",
    "coldstart.batch_size=4",
    "data.questions_per_iteration=4",
    "data.num_val_questions=2",
    "experience.questions_per_step=2",
    "experience.max_tokens_per_micro_batch=1024",
    "algorithm.budget=4",
    "rollout.sampling.max_response_tokens=48",
    "model.architecture.num_hidden_layers=1",
    "model.architecture.intermediate_size=64",
    "module.entropy_coefficient=0.05",  # so that there is a gradient, whatever the rewards
    "callbacks.checkpoint.every_n_epochs=2",
    "callbacks.checkpoint.keep=1",
    "callbacks.branch_penalty.target_concentration=0.5",
    "callbacks.rollout_logger.every_n_epochs=1",
    "trainer.max_epochs=6",
    "trainer.check_val_every_n_epoch=3",
    "num_threads=1",
]
TIMED = ("duration_s", "_per_s", "_s")
UPDATE = ("train/loss", "train/grad_norm", "train/entropy", "train/lr", "train/clip_fraction")
BATCHING = ("rollout/prefix_cache_hit_fraction", "num_cached_tokens")


def train(folder, *overrides, kill=None, timeout=200):
    """Run the command in a folder; `kill` has the arguments of `Killer`. Return its exit status and its output."""
    kills = [] if kill is None else ["+callbacks.kill._target_=tests.support.killer.Killer"]
    kills += [f"+callbacks.kill.{name}={value}" for name, value in (kill or {}).items()]
    done = run_command("train.py", *TINY, f"run_dir={folder}", *overrides, *kills, timeout=timeout)
    return done.returncode, done.stdout + done.stderr


def train_until_seen(path, folder, *overrides):
    """Run the command and kill it as soon as a file or folder is there."""
    process = Command("train.py", *TINY, f"run_dir={folder}", *overrides)
    deadline = time.monotonic() + 100
    while not path.exists():
        assert process.returncode is None, f"the run ended without {path}"
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)
    process.kill()


def train_until_killed(folder, *overrides, kill):
    status, output = train(folder, *overrides, kill=kill)
    # The process that was started; where another rank is killed, it ends by an error of its own.
    assert status == -signal.SIGKILL or (kill.get("rank") and status > 0), f"{kill} was not reached: {output[-3000:]}"
    return output


def train_to_the_end(folder, *overrides):
    status, output = train(folder, *overrides)
    assert status == 0, output[-3000:]
    return output


def curves(folder):
    """Every logged number but times: tag to step to the last value, bit by bit."""
    found = {}
    for path in sorted((folder / "tensorboard").glob("events.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if not is_measured(tag):
                found.setdefault(tag, {}).update({each.step: each.value for each in events.Scalars(tag)})
    return found


def trees(folder):
    """Journal file to trees by question in the order of the file, without measured times. None stands there twice."""
    found = {}
    for path in sorted((folder / "rollouts").glob("*.jsonl")):
        lines = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        by_question = {line["question"]["question_id"]: line for line in lines}
        assert len(by_question) == len(lines), f"{path.name} has a tree twice"
        found[path.name] = by_question
    return found


def without_times(value):
    if isinstance(value, dict):
        timed = (*TIMED, "checksum")
        return {name: without_times(each) for name, each in value.items() if not name.endswith(timed)}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def weights(folder):
    files = [folder / "policy" / "model.safetensors", *sorted((folder / "rollouts" / "weights").glob("*.safetensors"))]
    return {str(path.relative_to(folder)): {n: w.tolist() for n, w in load_file(path).items()} for path in files}


def check_same(found, expected, is_exact=True, begins_again=False):
    """The run of one folder is that of the other: same weights, curves and trees, in every bit.

    A run that was killed in the middle of a rollout grows the rest of it in other batches, and the engine's kernels
    round by the shape of a batch. Then (`is_exact=False`) the log-probs and entropies that the engine reports, and what
    is computed from them alone, agree to float32. Tokens, decisions, rewards, losses and weights agree in every bit.
    Where it begins such a rollout again (`begins_again`), what it had lies beside it.
    """
    assert weights(found) == weights(expected)
    own, other = curves(found), curves(expected)
    assert sorted(own) == sorted(other)
    for tag, values in other.items():
        if is_exact or tag in UPDATE:
            assert own[tag] == values, tag
        elif tag not in BATCHING:
            # A float32 has 1e-7; a mean over differences of log-probs starts there.
            assert own[tag] == pytest.approx(values, rel=1e-4, abs=2e-6), tag
    assert {name: list(each) for name, each in trees(found).items()} == {
        name: list(each) for name, each in trees(expected).items()
    }
    if is_exact:
        assert trees(found) == trees(expected)
    else:
        check_rounded(trees(found), trees(expected), "")
    assert not list((found / "checkpoints").glob("*.partial"))
    assert bool(list((found / "rollouts").glob("*superseded*"))) == begins_again


def check_rounded(found, expected, where):
    """Two nests are the same, but for the last bits of their floats."""
    if isinstance(expected, dict | list):
        assert len(found) == len(expected), where
        keys = expected if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            if key not in BATCHING:
                check_rounded(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), where
    else:
        assert found == expected, where
