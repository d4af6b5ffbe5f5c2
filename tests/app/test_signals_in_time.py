"""Generation that would take minutes is cancelled within five seconds of a signal, and the run ends.

A busy machine must not fail this and a slow mechanism must. So what the run does after the signal is counted in steps
of generation and in seconds of its own CPU time; seconds of the clock are measured against how many of them the same
machine gave the same process for a second of CPU time before.
"""

import os
import signal
import time
from dataclasses import dataclass

import pytest

from tests.app.test_signals_in_stages import PLAIN
from tests.support.commands import Command
from tests.support.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

STATED_S = 5.0
MOST_STEPS = 5
"""What has begun ends; the main thread may get its turn a little later."""
LONG = [
    "engine._target_=tests.support.long_generation.LongEngine",
    "rollout.sampling.max_response_tokens=20000",
    "engine.max_model_len=21000",
    "engine.max_num_seqs=16",
    "trainer.check_val_every_n_epoch=1000",
]
OVERLAP = [
    "data.overlap=true",
    "module.importance_correction.mode=truncated",
    "callbacks.checkpoint.every_n_epochs=1",
    "+callbacks.over._target_=tests.support.long_generation.EpochIsOver",
]


def cpu_s(pid):
    """Seconds of CPU time of a process; None once it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            words = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if words[0] == "Z" else (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Ending:
    """What a run did after a signal."""

    num_steps: int
    cpu_s: float
    wall_s: float
    slowness: float
    """Seconds of the clock for one of CPU time, before the signal."""


def end(job, began, mark, number):
    """Send a signal and see how the run ends."""
    before = cpu_s(job.pid)
    slowness = max(1.0, (time.monotonic() - began) / before)
    os.kill(job.pid, number)
    sent, last = time.monotonic(), before
    while (now := cpu_s(job.pid)) is not None:
        last = now
        assert time.monotonic() - sent < 300
        time.sleep(0.02)
    wall_s = time.monotonic() - sent
    job.wait()
    steps = [float(line) for line in mark.read_text().splitlines()]
    return Ending(sum(each > sent for each in steps), last - before, wall_s, slowness)


def check(ending, job, number):
    assert job.returncode == 128 + number, job.stderr[-3000:]
    assert ending.num_steps <= MOST_STEPS
    assert ending.cpu_s <= STATED_S
    assert ending.wall_s <= STATED_S * 2 * ending.slowness


def start(folder, mark, *overrides):
    beside = [f"+engine.mark={mark}", f"+engine.beside={'data.overlap=true' in overrides}"]
    return Command("train.py", f"run_dir={folder}", *PLAIN, *LONG, *beside, *overrides), time.monotonic()


def num_lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_generation_is_cancelled_in_time(tmp_path, number):
    mark = tmp_path / "steps"
    job, began = start(tmp_path / "run", mark)
    wait_until(lambda: job.returncode is not None or num_lines(mark) > 10, 200)
    check(end(job, began, mark, number), job, number)


def test_generation_beside_an_update_is_cancelled_in_time_also_where_a_checkpoint_waits_for_it(tmp_path):
    mark, over = tmp_path / "steps", tmp_path / "over"
    job, began = start(tmp_path / "run", mark, *OVERLAP, f"+callbacks.over.mark={over}")
    wait_until(lambda: job.returncode is not None or over.exists(), 200)
    num_before = num_lines(mark)
    wait_until(lambda: job.returncode is not None or num_lines(mark) > num_before + 20, 200)
    check(end(job, began, mark, signal.SIGTERM), job, signal.SIGTERM)
    assert (tmp_path / "run" / "checkpoints" / "iteration0000.ckpt").exists(), job.stdout[-2000:]
