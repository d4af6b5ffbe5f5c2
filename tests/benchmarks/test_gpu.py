"""The command for machines with a GPU: its parts, its budget, and a dry run of all of them."""

import argparse
import json
import subprocess
import sys
from functools import partial
from time import monotonic

import pytest

from benchmarks import gpu
from benchmarks.gpu import Session, read_parts
from benchmarks.support.gpu_case import Case, RunningCase, Setting
from benchmarks.support.gpu_models import SHAPES, architecture, flops_per_token
from benchmarks.support.gpu_parts import CASES
from tests.support.paths import ROOT
from tests.support.processes import is_running, wait_until


def note(setting, report):
    report.add({"limit_s": setting.limit_s}, {"a goal": (setting.limit_s, ">=", 1.0)})


def fail(setting, report):
    raise ValueError


def meet(setting, report, name, other):
    (setting.out / name).touch()
    wait_until((setting.out / other).exists)


def run_cases(tmp_path, *cases, budget_s=1000.0, **setting):
    told = Setting(device="cpu", is_dry=True, out=tmp_path, **setting)
    session = Session(told, budget_s, tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    session.run([Case(part="part", limit_s=60.0, **case) for case in cases])
    return session, json.loads((tmp_path / "gpu.json").read_text())


def test_one_part_that_fails_stops_no_other(tmp_path):
    session, kept = run_cases(tmp_path, {"name": "one", "run": fail}, {"name": "two", "run": note})
    assert [session.figures["part"][name]["status"] for name in ("one", "two")] == ["failed", "done"]
    assert session.goals == {"part/two: a goal": (60.0 * gpu.DRY_PATIENCE, ">=", 1.0)}
    assert kept["figures"] == session.figures
    assert "ValueError" in (tmp_path / "gpu.log").read_text()


def test_what_the_budget_has_no_time_for_is_named(tmp_path):
    session, _ = run_cases(tmp_path, {"name": "one", "run": note}, budget_s=gpu.LEAST_S - 1.0)
    assert session.figures == {"part": {"one": {"status": "no time left", "seconds": 0.0, "figures": {}}}}


def test_a_case_gets_no_more_than_is_left(tmp_path):
    session, _ = run_cases(tmp_path, {"name": "one", "run": note}, budget_s=40.0)
    assert 0 < session.figures["part"]["one"]["figures"]["limit_s"] < 40.0


def test_cases_beside_the_gpu_start_first_and_are_waited_for_last(tmp_path):
    session, _ = run_cases(tmp_path, {"name": "beside", "run": note, "is_beside": True}, {"name": "one", "run": note})
    assert [outcome.case.name for outcome in session.outcomes] == ["one", "beside"]


def poison(setting, report):
    raise RuntimeError("CUDA error: initialization error")


def test_processes_are_not_forked_once_a_fork_could_not_use_the_gpu(tmp_path):
    session, _ = run_cases(tmp_path, {"name": "one", "run": fail})
    assert session._method == "fork"
    session.run([Case(part="part", name="two", limit_s=60.0, run=poison)])
    assert session._method == "spawn"


def test_what_is_not_timed_runs_side_by_side(tmp_path):
    session, _ = run_cases(
        tmp_path,
        {"name": "a", "run": partial(meet, name="a", other="b"), "is_timed": False},
        {"name": "b", "run": partial(meet, name="b", other="a"), "is_timed": False},
        {"name": "timed", "run": note},
        most_at_once=2,
    )
    assert {outcome.status for outcome in session.outcomes} == {"done"}
    assert session.outcomes[-1].case.name == "timed"


def test_no_case_outlives_a_session_that_is_interrupted(tmp_path, monkeypatch):
    def interrupted(running):
        started.append(running._process.pid)
        raise KeyboardInterrupt

    started = []
    monkeypatch.setattr(RunningCase, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cases(tmp_path, {"name": "a", "run": partial(meet, name="a", other="nobody"), "is_beside": True})
    assert not is_running(*started)


def test_the_age_of_a_process_counts_from_its_start():
    code = "import time; time.sleep(0.2); from benchmarks.support.gpu_case import process_age_s as a; print(a())"
    begin = monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.2 <= float(done.stdout) <= monotonic() - begin + 0.1


def test_parts_and_single_cases_are_chosen_by_name():
    assert read_parts("tests,update/8B") == ["tests", "update/8B"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be among ceilings, tests, .*, but got test"):
        read_parts("test")


def test_every_case_can_be_chosen_by_its_title():
    titles = [case.title for case in CASES]
    assert read_parts(",".join(titles)) == titles
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(("shape", "parameters"), [("0.6B", 0.596e9), ("1.7B", 1.72e9), ("8B", 7.57e9)])
def test_the_work_of_a_short_row_is_six_operations_for_each_weight_of_a_matrix(shape, parameters):
    # Published sizes; of the largest, the input embedding is looked up and not multiplied.
    assert set(SHAPES) == {"0.6B", "1.7B", "8B"}
    assert flops_per_token(architecture(shape, is_dry=False), 0) / 6 == pytest.approx(parameters, rel=0.002)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dry_run_goes_through_every_part(tmp_path):
    words = ["--dry", "--budget", "1500", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["figures"]
    ended = {f"{part}/{name}": each["status"] for part in found for name, each in found[part].items()}
    assert ended == {case.title: "done" for case in CASES}, (tmp_path / "gpu.log").read_text()
