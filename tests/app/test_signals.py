"""The command is told to end while it waits for a reward that never comes, and goes on afterwards."""

import os
import signal
import time

import pytest

from tests.support.commands import Command
from tests.support.hung_parts import WAYS
from tests.support.killed_runs import TINY, check_same, train_to_the_end
from tests.support.processes import is_running, wait_until

HUNG = ["reward._target_=tests.support.hung_parts.HungReward", "callbacks.checkpoint.every_n_epochs=10"]
STATED_S = 20
OVERLAP = ["data.overlap=true", "module.importance_correction.mode=truncated"]


def hung(folder, how, after):
    """Overrides of a run whose reward hangs after so many answers; a run before it that did lets it pass."""
    return [
        *HUNG,
        "trainer.max_epochs=4",
        f"+reward.how={how}",
        f"+reward.mark={folder / how}",
        f"+reward.after={after}",
    ]


def end_by_signal(folder, number, *overrides, marks):
    """Run the command until all marks are there, send a signal, and return how it ended and what it said."""
    job = Command("train.py", *TINY, f"run_dir={folder}", *overrides)
    deadline = time.monotonic() + 100
    while not all(mark.exists() for mark in marks):
        assert job.returncode is None, job.stderr[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(job.pid, number)
    job.wait(STATED_S)
    return job


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("how", WAYS)
def test_a_signal_ends_a_run_whose_reward_hangs(tmp_path, how, number):
    job = end_by_signal(tmp_path / "run", number, *hung(tmp_path, how, 20), marks=[tmp_path / how])
    assert job.returncode == 128 + number
    assert job.stderr.count("the run ends (exit status") == 1
    assert list((tmp_path / "run" / "rollouts").glob("*.steps.jsonl")), "what was generated is kept"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["async", "thread"])
def test_a_signal_ends_a_run_whose_overlapped_rollouts_hang(tmp_path, how):
    overrides = [*hung(tmp_path, how, 40), *OVERLAP]
    job = end_by_signal(tmp_path / "run", signal.SIGTERM, *overrides, marks=[tmp_path / how])
    assert job.returncode == 128 + signal.SIGTERM


def check_saved(job, folder):
    """The status of a job is that of SIGTERM, and its folder has a checkpoint of the moment."""
    assert job.returncode == 128 + signal.SIGTERM
    saved = [path.name for path in (folder / "checkpoints").glob("iteration*")]
    assert saved == ["iteration0001.ckpt"], "none was due, but two iterations were over"


@pytest.mark.slow
def test_a_run_that_was_told_to_end_goes_on_from_its_last_iteration_as_if_it_had_not_been(tmp_path):
    overrides, mark = hung(tmp_path, "async", 45), tmp_path / "async"
    job = end_by_signal(tmp_path / "cut", signal.SIGTERM, *overrides, marks=[mark])
    check_saved(job, tmp_path / "cut")
    train_to_the_end(tmp_path / "cut", *overrides, "ckpt_path=last")
    train_to_the_end(tmp_path / "whole", *overrides)
    check_same(tmp_path / "cut", tmp_path / "whole", is_exact=False)


@pytest.mark.slow
def test_overlapped_rollouts_that_are_told_to_end_go_on_with_their_own_weights(tmp_path):
    overrides, is_over = [*hung(tmp_path, "async", 45), *OVERLAP], tmp_path / "the update is over"
    mark = ["_target_=tests.support.hung_parts.EpochMark", f"mark='{is_over}'", "epoch=1"]
    told = [f"+callbacks.mark.{each}" for each in mark]
    # Either may come first; where the reward did not hang here, it would in the run that goes on.
    marks = [is_over, tmp_path / "async"]
    job = end_by_signal(tmp_path / "cut", signal.SIGTERM, *overrides, *told, marks=marks)
    check_saved(job, tmp_path / "cut")
    train_to_the_end(tmp_path / "cut", *overrides, "ckpt_path=last")
    train_to_the_end(tmp_path / "whole", *overrides)
    check_same(tmp_path / "cut", tmp_path / "whole", begins_again=True)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_of_which_one_is_told_to_end_save_together_and_go_on(tmp_path):
    overrides, mark = [*hung(tmp_path, "async", 22), "strategy=ddp", "trainer.devices=2"], tmp_path / "async"
    job = end_by_signal(tmp_path / "cut", signal.SIGTERM, *overrides, marks=[mark])
    check_saved(job, tmp_path / "cut")
    train_to_the_end(tmp_path / "cut", *overrides, "ckpt_path=last")
    train_to_the_end(tmp_path / "whole", *overrides)
    check_same(tmp_path / "cut", tmp_path / "whole", is_exact=False)


WAITING = """
import subprocess, sys, time
from aepo_lightning.app import {module}

def wait():
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
    print(child.pid, "ready", flush=True)
    time.sleep(1000)

{module}.{function} = lambda *_, **__: wait()
sys.argv = ["command", "folder", "target"][: {num_words}]
{module}.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("module", "function", "num_words"), [("replay", "replay_run", 2), ("export", "export", 3)])
def test_a_signal_ends_the_other_commands_with_what_they_started(module, function, num_words, number):
    job = Command("-c", WAITING.format(module=module, function=function, num_words=num_words))
    wait_until(lambda: job.returncode is not None or (job._outputs[0].exists() and "ready" in job.stdout), 100)
    os.kill(job.pid, number)
    assert job.wait(100).returncode == 128 + number
    assert job.stderr.count(f"the command ends (exit status {128 + number})") == 1
    assert "Traceback" not in job.stderr
    assert not is_running(int(job.stdout.split()[0]))
