"""The command on two CPU ranks, of which one fails: the whole job ends soon, with that rank's own error."""

import re
import subprocess
import sys
import time

import pytest

from tests.app.test_train_command import SMALL
from tests.support.paths import ROOT

STATED_S = 30
"""Within this time of a failure no process of the job is left."""
QUICK = [
    *(each for each in SMALL if not each.startswith("coldstart")),
    "coldstart=none",
    "strategy=fsdp",
    "trainer.devices=2",
    "data.round_trip=false",  # or the reward would fail before there are rollouts
]
GUARD = "++callbacks.rank_guard._target_=aepo_lightning.callbacks.RankGuard"


def fault(where, rank, how, mark):
    """Overrides that put a fault into a place of a run."""
    target, node = ("FaultyReward", "reward") if where == "rollout" else ("FaultyStep", "callbacks.fault")
    own = {"_target_": f"tests.support.faults.{target}", "rank": rank, "how": how, "mark": mark}
    return [f"++{node}.{name}={value}" for name, value in own.items()]


def run_with_fault(folder, where, rank, how, *overrides):
    """Run the command; return what it printed, its exit status, and how long it lived on after the fault."""
    mark = folder / "mark"
    command = [sys.executable, "train.py", *QUICK, GUARD, *fault(where, rank, how, mark), f"run_dir={folder / 'run'}"]
    job = subprocess.Popen(
        [*command, *overrides], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    # The pipe closes when no process holds it any more, so this waits for every rank.
    output, _ = job.communicate(timeout=280)
    assert mark.is_file(), output[-3000:]
    return output, job.returncode, time.time() - float(mark.read_text())


CASES = {
    "a bug in the rollout of rank 1": ("rollout", 1, "bug", "RuntimeError: a bug of one rank only"),
    "a bug in the rollout of rank 0": ("rollout", 0, "bug", "RuntimeError: a bug of one rank only"),
    "a refusal in a step of rank 1": ("step", 1, "refusal", "it failed with TrainingError: a refusal of one rank"),
    "a bug in a step of rank 0": ("step", 0, "bug", "RuntimeError: a bug of one rank only"),
    "rank 1 killed": ("step", 1, "kill", "ended by signal SIGKILL"),
    "rank 0 killed": ("step", 0, "kill", "its process"),
}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("where", "rank", "how", "error"),
    [pytest.param(*case, id=name) for name, case in CASES.items()],
)
def test_a_rank_that_fails_brings_the_job_down_with_its_own_error(tmp_path, where, rank, how, error):
    output, status, seconds = run_with_fault(tmp_path, where, rank, how)
    assert status != 0
    assert seconds < STATED_S
    other = 1 - rank
    (line,) = re.findall(rf"Rank {other} stops, because rank {rank} cannot go on\. Rank {rank} of 2 .*", output)
    assert error in line
    if how != "kill":
        (own,) = re.findall(rf"^Rank {rank} of 2 .*The job ends\.$", output, re.MULTILINE)
        assert error in own
    # A bug comes with the place where it was raised, a refusal of ours explains itself.
    assert ("faults.py" in output) == (how == "bug")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_hangs_is_named_with_the_place_where_it_stands(tmp_path):
    limit = 10
    output, status, seconds = run_with_fault(
        tmp_path, "step", 1, "hang", f"++callbacks.rank_guard.stall_after_s={limit}"
    )
    assert status != 0
    assert seconds < limit + STATED_S
    assert "Rank 0 stops, because rank 1 cannot go on" in output
    assert "Rank 1 stands at" in output
    assert "faults.py" in output
    assert "Rank 0 stands at" not in output, "it waits for rank 1, which is not its fault"


@pytest.mark.slow
@pytest.mark.distributed
def test_an_interrupted_job_leaves_no_process(tmp_path):
    mark = tmp_path / "mark"
    command = [
        sys.executable,
        "train.py",
        *QUICK,
        GUARD,
        *fault("step", 1, "hang", mark),
        f"run_dir={tmp_path / 'run'}",
    ]
    job = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while not mark.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    job.terminate()
    time.sleep(1)
    job.kill()  # as a scheduler does with what does not listen
    job.communicate(timeout=STATED_S)
    assert job.returncode != 0
