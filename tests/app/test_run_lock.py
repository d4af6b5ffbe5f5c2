"""One run at a time writes into a folder."""

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys

import pytest

from aepo_lightning.app.run_lock import LOCK, RunLock
from aepo_lightning.errors import ConfigError
from tests.support.paths import ROOT


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path):
    lock = RunLock(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"in use by process {os.getpid()} on {socket.gethostname()} since 2.*run_dir="
    ):
        RunLock(tmp_path)
    lock.release()
    lock.release()
    RunLock(tmp_path).release()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_lock_that_nobody_refers_to_is_free(tmp_path):
    RunLock(tmp_path)
    RunLock(tmp_path).release()


def test_a_folder_that_is_not_there_has_no_lock(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunLock(tmp_path / "gone")


HOLD = """
import os, signal, sys
from pathlib import Path
from aepo_lightning.app.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)  # it is there, and outlives the run
signal.pause()
"""


def test_a_killed_run_lets_go_even_if_a_worker_of_it_lives(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, cwd=ROOT) as process:
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(ConfigError, match=f"in use by process {process.pid} on "):
                RunLock(tmp_path)
            process.kill()
            process.wait()
            RunLock(tmp_path).release()
        finally:
            process.kill()
            os.kill(worker, signal.SIGKILL)


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_file_system_without_locks_is_named_and_a_living_holder_believed(tmp_path, without_locks, caplog):
    RunLock(tmp_path)
    assert "keeps no locks (Operation not supported)" in caplog.text
    holder = {"pid": os.getppid(), "host": socket.gethostname(), "since": "yesterday"}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with pytest.raises(ConfigError, match=f"in use by process {os.getppid()} on .* since yesterday"):
        RunLock(tmp_path)


@pytest.mark.parametrize("left", ["", "no JSON", "[]", '{"pid": 4194305, "host": "%s"}', '{"pid": 1, "host": "other"}'])
def test_what_a_run_left_behind_there_does_not_stop_the_next_one(tmp_path, without_locks, left, caplog):
    (tmp_path / LOCK).write_text(left.replace("%s", socket.gethostname()))
    with caplog.at_level(logging.ERROR):
        RunLock(tmp_path).release()
