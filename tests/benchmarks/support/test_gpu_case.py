"""A case of `benchmarks.gpu` ends within its limit, alone, and keeps what it had found."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks.support.gpu_case import Case, Outcome, RunningCase, Setting
from tests.support.processes import is_running, wait_until

SETTING = Setting(device="cpu", is_dry=True, out=None, limit_s=300.0)


def succeed(setting, report):
    report.add({"found": 1}, {"goal": (0.5, "<=", 1.0)})
    report.add({"more": [2, 3]})


def fail(setting, report):
    report.add({"found": 1})
    raise ValueError("what went wrong")


def crash(setting, report):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(setting, report):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report.add({"child": child.pid})
    time.sleep(600)


def start(tmp_path, run, **changes):
    case = Case(part="part", name="a name", limit_s=1.0, run=run)
    return RunningCase(case, replace(SETTING, out=tmp_path, **changes), tmp_path)


def test_a_case_that_ends_well_gives_figures_and_goals(tmp_path):
    outcome = start(tmp_path, succeed).wait()
    assert outcome.status == "done"
    assert outcome.as_json()["figures"] == {"found": 1, "more": [2, 3]}
    assert dict(outcome.goals) == {"goal": [0.5, "<=", 1.0]}
    assert '{"found": 1}' in outcome.log


def test_a_case_that_raises_keeps_what_it_found_and_says_why(tmp_path):
    found = start(tmp_path, fail).wait().as_json()
    assert (found["status"], found["figures"]) == ("failed", {"found": 1})
    assert found["last_lines"][-1] == "ValueError: what went wrong"


def test_a_case_that_crashes_fails_alone(tmp_path):
    assert start(tmp_path, crash).wait().status == "failed"


def test_a_case_that_hangs_is_ended_with_all_it_started(tmp_path):
    running = start(tmp_path, hang, limit_s=0.0)
    wait_until(lambda: (tmp_path / "part.a name.json").exists())
    outcome = running.wait()
    assert outcome.status == "out of time"
    wait_until(lambda: not is_running(outcome.figures["child"]))


@pytest.mark.parametrize("status", ["done", "no time left"])
def test_only_what_did_not_end_well_shows_its_last_lines(status):
    case = Case(part="part", name="name", limit_s=1.0, run=succeed)
    assert "last_lines" not in Outcome(case=case, status=status, log="one\ntwo").as_json()
