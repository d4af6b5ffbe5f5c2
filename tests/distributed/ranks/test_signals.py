"""Signals end a process whatever it waits for. Each case is a process of its own; the limits are for bugs."""

import os
import signal
import time
from contextlib import suppress

import pytest
from torch.distributed import TCPStore

from aepo_lightning.distributed.ranks import Board, Sign
from tests.support.commands import Command
from tests.support.processes import is_running

LONG_S = 60
SCRIPT = """
import asyncio, os, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from torch.distributed import TCPStore
from aepo_lightning.distributed.ranks import finishing, guarded_process, stop_on_signal
from aepo_lightning.distributed.ranks.signals import EndTimes, end_on_lent_signals
from aepo_lightning.errors import SignalExit
{before}
with guarded_process(EndTimes(grace_s={grace_s})):
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
    forget = stop_on_signal(lambda: os.write(1, b"what was over was stopped "))
    stop_on_signal(lambda: os.write(1, b"work beside was stopped "))
    forget()
    print(child.pid, "ready", flush=True)
    {work}
print("went on", flush=True)
"""
SWALLOWING = """
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass
"""
WAITS = {
    "a coroutine": "asyncio.run(asyncio.sleep(1000))",
    "a call": "time.sleep(1000)",
    "a lock": "threading.Lock().acquire() and threading.Event().wait()",
    "a thread": "ThreadPoolExecutor(1).submit(time.sleep, 1000).result()",
    "a thread of a loop": "asyncio.run(asyncio.to_thread(time.sleep, 1000))",
    "foreign code": "TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False).get('what never comes')",
    "code that catches everything": SWALLOWING,
}


@pytest.fixture
def start():
    """Start a process that stands at `work`, with a child; nothing of it outlives the test."""
    jobs = []

    def start(work, grace_s=0.5, before=""):
        jobs.append(Command("-c", SCRIPT.format(work=work, grace_s=grace_s, before=before)))
        until(jobs[-1], lambda: "ready" in text(jobs[-1]))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        if (words := text(job).split()) and is_running(int(words[0])):
            os.kill(int(words[0]), signal.SIGKILL)


def text(job):
    """What it has written so far; nothing before it has begun."""
    try:
        return job.stdout
    except FileNotFoundError:
        return ""


def until(job, condition):
    end = time.monotonic() + LONG_S
    while not condition():
        assert job.returncode is None, job.stderr
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("work", WAITS.values(), ids=WAITS.keys())
def test_a_signal_ends_any_wait_with_one_line_and_its_status_and_leaves_no_child(start, work):
    job = start(work)
    os.kill(job.pid, signal.SIGTERM)
    job.wait(LONG_S)
    assert job.returncode == 128 + signal.SIGTERM
    assert job.stderr.count("SIGTERM: the run ends (exit status 143).") == 1
    assert "went on" not in job.stdout
    assert job.stdout.count("was stopped") == job.stdout.count("work beside was stopped") == 1
    assert not is_running(int(job.stdout.split()[0]))


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1", "SIGHUP"])
def test_other_signals_that_end_runs_are_heard_too(start, name):
    job = start(WAITS["a coroutine"])
    os.kill(job.pid, getattr(signal, name))
    assert job.wait(LONG_S).returncode == 128 + getattr(signal, name)
    assert f"{name}: the run ends" in job.stderr


def test_where_it_stood_is_said_if_it_does_not_end_by_itself(start):
    job = start(
        WAITS["a lock"].replace(
            "threading.Event()", "threading.Thread(target=time.sleep, args=[1000]).start() or threading.Event()"
        )
    )
    os.kill(job.pid, signal.SIGTERM)
    job.wait(LONG_S)
    assert "The run has not ended within 0.5 s, so it is ended. It stood at" in job.stderr


def test_a_second_signal_ends_it_at_once(start):
    job = start(SWALLOWING, grace_s=1000)
    os.kill(job.pid, signal.SIGTERM)
    until(job, lambda: "the run ends" in job.stderr)
    while job.returncode is None:
        time.sleep(0.7)  # sooner it would be the same signal, and on a busy machine it may be seen late
        with suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGINT)
    assert job.wait(LONG_S).returncode == 128 + signal.SIGTERM
    assert "SIGINT again: the run is ended at once." in job.stderr
    assert not is_running(int(job.stdout.split()[0]))


def test_a_signal_that_comes_twice_at_once_counts_once(start):
    tidy = "\n    try: time.sleep(1000)\n    finally: time.sleep(1.0); print('tidied up', flush=True)"
    job = start(tidy, grace_s=1000)
    for _ in range(3):
        os.kill(job.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert job.wait(LONG_S).returncode == 128 + signal.SIGTERM
    assert "tidied up" in job.stdout


def test_what_is_being_written_comes_to_its_end_first(start):
    write = (
        "\n    with finishing():\n        time.sleep(1.2)\n        print('written', flush=True)\n    time.sleep(1000)"
    )
    job = start(write, grace_s=0.3)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(LONG_S).returncode == 128 + signal.SIGTERM
    assert "written" in job.stdout


def test_a_signal_to_a_forked_child_is_not_one_to_its_parent(start):
    work = """
    process = get_context("fork").Process(target=time.sleep, args=[1000]); process.start()
    os.kill(process.pid, signal.SIGTERM); process.join(); print(process.exitcode, flush=True)
    time.sleep(0.3); child.kill()
"""
    job = start(work).wait(LONG_S)
    assert job.returncode == 0
    assert job.stdout.split()[-3:] == ["-15", "went", "on"]


def test_signals_that_are_ignored_or_handled_by_others_are_left_to_them(start):
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.signal(signal.SIGUSR1, lambda *_: print('theirs'))"
    work = "os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGUSR1); child.kill()"
    job = start(work, before=before).wait(LONG_S)
    assert job.returncode == 0
    assert "theirs" in job.stdout


def test_signals_are_given_back_at_the_end_and_may_be_claimed_from_a_later_owner(start):
    work = "signal.signal(signal.SIGTERM, lambda *_: None); end_on_lent_signals(None, {}); child.kill()\n"
    work += (
        "    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(1000)\n    except SignalExit as error: print(error)"
    )
    assert "told to end by SIGTERM" in start(work).wait(LONG_S).stdout
    given_back = start("child.kill()\nassert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL").wait(LONG_S)
    assert given_back.returncode == 0, given_back.stderr


RANK = """
import sys, time
from torch.distributed import TCPStore
from aepo_lightning.distributed.ranks import Board, RankWatch, WatchTimes, guarded_process
from aepo_lightning.distributed.ranks import guard
from aepo_lightning.distributed.ranks.signals import EndTimes
store = TCPStore("127.0.0.1", int(sys.argv[1]))
guard._current.append(RankWatch(Board(store, 0, 2), WatchTimes(poll_s=0.1)))
with guarded_process(EndTimes(grace_s=0.5)):
    print("ready", flush=True)
    {work}
"""


@pytest.mark.parametrize("work", ["time.sleep(1000)", "store.clone().get('what never comes')"], ids=["python", "c++"])
def test_a_rank_that_is_told_to_end_tells_the_others(monkeypatch, work):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr("aepo_lightning.distributed.ranks.board.machine_id", lambda: "another machine")
    board = Board(store, 1, 2)
    board.introduce(Sign(beat=1))
    job = Command("-c", RANK.format(work=work), store.port)
    until(job, lambda: "ready" in text(job))
    os.kill(job.pid, signal.SIGTERM)
    until(job, lambda: board.failure() is not None)
    assert board.failure().reason == "it was told to end by SIGTERM"
    board.acknowledge()
    assert job.wait(LONG_S).returncode == 128 + signal.SIGTERM


HOLDING = """
    import re
    thread = threading.Thread(target=re.match, args=("(a+)+$", "a" * 60 + "b"))
    thread.start()
    thread.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("grace_s", "num_signals"), [(0.5, 1), (1000.0, 2)], ids=["once", "twice"])
def test_code_that_holds_the_interpreter_is_killed_with_what_it_started(start, grace_s, num_signals):
    job = start(HOLDING, grace_s)
    time.sleep(1)  # until it holds the interpreter; before, the signal is heard
    for _ in range(num_signals):
        os.kill(job.pid, signal.SIGTERM)
        time.sleep(1.5)
    job.wait(LONG_S)
    assert job.returncode == -signal.SIGKILL
    assert "The run does not hear SIGTERM: some code holds the interpreter. It is killed." in job.stderr
    assert not is_running(int(job.stdout.split()[0]))


@pytest.mark.slow
def test_other_signals_kill_nothing(start):
    before = "signal.signal(signal.SIGUSR2, lambda *_: None)"
    work = """
    import re
    thread = threading.Thread(target=re.match, args=("(a+)+$", "a" * 25 + "b"))
    thread.start()
    os.kill(os.getpid(), signal.SIGUSR2)
    thread.join()
    child.kill()
"""
    job = start(work, 0.1, before)
    job.wait(LONG_S)
    assert job.returncode == 0, job.stderr
    assert "went on" in job.stdout
