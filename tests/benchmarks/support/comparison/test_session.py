"""Runs side by side: what is started, what is kept, what goes on after an interrupt."""

import json
import os
import signal
import sys
import time

import pytest

from benchmarks.support.comparison import session
from benchmarks.support.comparison.results import append, load
from benchmarks.support.comparison.session import Session
from benchmarks.support.comparison.settings import Bed, Job
from tests.support.compared import make_record
from tests.support.processes import is_running, wait_until

BEDS = {"bed": Bed(experiment="quickstart", num_generated_tokens=100, num_answered_calls=20)}
ORDER = [Job("bed", name, seed) for seed in (0, 1) for name in ("aepo", "grpo")]


def begin(words, folder, setting, report):
    folder.mkdir(parents=True)


def finish(words, folder, cold_start, setting, report):
    found = make_record(Job("", "", 0))
    report.add({name: found[name] for name in ("iterations", "held_out")})


def fail(*_):
    raise ValueError("no such thing")


def hang(words, folder, cold_start, setting, report):
    folder.with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.fixture
def made(monkeypatch):
    """Let runs be quick functions, and what they are made of words."""

    def make(run=finish, cold_start=begin):
        monkeypatch.setattr(session, "make_run", run)
        monkeypatch.setattr(session, "make_cold_start", cold_start)
        monkeypatch.setattr(session, "words_of", lambda job, _: [job.name])
        monkeypatch.setattr(session, "cold_start_words", lambda job, _: [job.name])
        monkeypatch.setattr(session, "configuration_digest", lambda *parts: f"c {parts[-1]}")
        monkeypatch.setattr(session, "code_digest", lambda *_: "d")
        monkeypatch.setattr(session, "cold_start_name", lambda name, _, seed: f"{name}-{seed}")

    return make


def make_session(tmp_path, **settings):
    said = []
    return Session(out=tmp_path, beds=BEDS, say=said.append, **settings), said


def done(tmp_path):
    found, _ = load(tmp_path / "results.jsonl")
    return {job for job, record in found.items() if record["status"] == "done"}


def test_every_run_is_made_once_in_order_after_one_cold_start_for_each_seed(made, tmp_path):
    made()
    own, said = make_session(tmp_path)
    assert own.run(ORDER)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["algorithm"], line["seed"]) for line in lines] == [(job.algorithm, job.seed) for job in ORDER]
    assert lines[0]["configuration"] == "c aepo"
    assert lines[0]["held_out"]["val/pass@1"] == [0.2, 0.5]
    assert sorted(path.name for path in (tmp_path / "coldstarts").iterdir()) == ["bed-0", "bed-1"]
    assert said[0] == "0 of 4 runs are there."
    assert "pass@1 0.200 -> 0.500, " in said[1]
    assert said[-1].endswith("0 left, about 0 min")
    again, said = make_session(tmp_path)
    assert again.run(ORDER)
    assert said == ["4 of 4 runs are there."]


def test_what_is_damaged_failed_or_of_another_configuration_is_made_again(made, tmp_path):
    made()
    path = tmp_path / "results.jsonl"
    whole = [make_record(job, configuration=f"c {job.algorithm}") for job in ORDER]
    append(path, whole[0])
    append(path, whole[1] | {"configuration": "c of before"})
    append(path, whole[2] | {"status": "failed"})
    path.write_bytes(path.read_bytes() + json.dumps(whole[3]).encode()[:200])
    own, said = make_session(tmp_path)
    assert own.missing(ORDER) == ORDER[1:]
    assert said == [f"{path} has 1 damaged lines: what they were about is made again."]
    assert own.run(ORDER)
    assert done(tmp_path) == {*ORDER}


def test_a_run_that_fails_costs_only_itself_and_says_why(made, tmp_path):
    made(run=lambda words, *rest: (fail if words == ["bed/grpo/0"] else finish)(words, *rest))
    own, said = make_session(tmp_path)
    assert not own.run(ORDER)
    assert done(tmp_path) == {*ORDER} - {Job("bed", "grpo", 0)}
    assert "no such thing" in load(tmp_path / "results.jsonl")[0][Job("bed", "grpo", 0)]["problem"]
    assert any(line.startswith("bed/grpo/0 failed: ") and "no such thing" in line for line in said)


def test_a_cold_start_that_fails_leaves_out_its_own_runs(made, tmp_path):
    made(cold_start=lambda words, folder, *rest: (fail if folder.name == "bed-0" else begin)(words, folder, *rest))
    own, said = make_session(tmp_path, num_side_by_side=2)
    assert not own.run(ORDER)
    assert done(tmp_path) == {*ORDER[2:]}
    assert said[-1] == "2 runs have no cold start."


def test_nothing_is_started_after_the_budget(made, tmp_path):
    made()
    own, said = make_session(tmp_path, budget_s=0.0)
    assert not own.run(ORDER)
    assert said == ["0 of 4 runs are there.", "The time is up: 4 runs are not made."]


def run_until_ended(out):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Session(out=out, beds=BEDS, say=lambda _: None, num_side_by_side=2).run(ORDER)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_in_flight_ends_with_the_command(made, tmp_path, number):
    made(run=lambda words, *rest: (finish if words == ["bed/aepo/0"] else hang)(words, *rest))
    pid = os.fork()
    if not pid:
        try:
            run_until_ended(tmp_path)
        finally:
            os._exit(3)
    wait_until(lambda: len([*(tmp_path / "runs").glob("*.pid")]) == 2)
    children = [int(path.read_text()) for path in (tmp_path / "runs").glob("*.pid")]
    os.kill(pid, number)
    os.waitpid(pid, 0)
    wait_until(lambda: not any(map(is_running, children)))
    assert done(tmp_path) == {ORDER[0]}
    made()
    own, _ = make_session(tmp_path)
    assert own.run(ORDER)
    assert done(tmp_path) == {*ORDER}
