import os
import signal
import subprocess
import sys
import threading

import pytest

from aepo_lightning.distributed.ranks import Neighbours, how_it_ended

SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(100)"
LONG_S = 60.0


@pytest.fixture
def sleeper():
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def test_the_end_of_a_process_is_noticed_at_once(sleeper):
    neighbours = Neighbours()
    neighbours.add({3: sleeper.pid})
    assert neighbours.wait(0.0) == set()
    threading.Timer(0.05, sleeper.kill).start()
    assert neighbours.wait(LONG_S) == {3}
    assert neighbours.wait(0.0) == {3}


def test_a_process_that_was_gone_before_counts_as_ended(sleeper):
    sleeper.kill()
    sleeper.wait()
    neighbours = Neighbours()
    neighbours.add({1: sleeper.pid})
    assert neighbours.ended == {1}


def test_a_waiting_thread_can_be_woken():
    neighbours = Neighbours()
    threading.Timer(0.05, neighbours.wake).start()
    assert neighbours.wait(LONG_S) == set()


def test_the_way_in_which_a_child_ended_is_told(sleeper):
    assert how_it_ended(sleeper.pid) == "without a word", "it still runs"
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert how_it_ended(sleeper.pid).startswith("by signal SIGKILL")
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert how_it_ended(child.pid) == "with exit status 7"


def test_a_process_of_others_ends_without_a_word():
    assert how_it_ended(1) == "without a word"


RANK = """
import os, time
from aepo_lightning.distributed.ranks import watch_launcher
watch_launcher()
time.sleep(float(os.environ["LIVES_S"]))
print("lived on")
"""
# It leaves its child behind.
LAUNCHER = """
import os, subprocess, sys
from aepo_lightning.distributed.ranks import watch_launcher
watch_launcher()
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"LOCAL_RANK": "1"})
"""


@pytest.mark.parametrize(
    ("variables", "lives_s"),
    [
        pytest.param({}, 100, id="lightning"),
        pytest.param({"SLURM_PROCID": "1"}, 3, id="srun"),
    ],
)
@pytest.mark.slow
def test_a_rank_that_lightning_launched_ends_with_its_launcher(variables, lives_s):
    others = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    environment |= variables | {"LIVES_S": str(lives_s)}
    command = [sys.executable, "-c", LAUNCHER, RANK]
    # The pipe closes when the child has ended too.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_S, check=True)
    assert ("the process that launched it has ended" in done.stderr) == (not variables)
    assert ("lived on" in done.stdout) == bool(variables)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel keeps a list of children on Linux only")
def test_children_are_ended_even_those_that_do_not_listen():
    script = (
        "import subprocess, sys\n"
        "from aepo_lightning.distributed.ranks import end_children\n"
        f"polite = subprocess.Popen({SLEEP!r})\n"
        f"deaf = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=subprocess.PIPE)\n"
        "deaf.stdout.readline()\n"
        "end_children()\n"
        "print(polite.wait(), deaf.wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG_S, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), str(-signal.SIGKILL)]
