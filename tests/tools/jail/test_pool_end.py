"""How a pool ends: nothing is left behind, whoever ends it and however."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from aepo_lightning.errors import ConfigError
from aepo_lightning.tools.jail import ExitKind, PythonPool
from tests.support.paths import ROOT
from tests.support.processes import is_running, wait_until
from tests.tools.jail.parts import (
    HANG,
    code_runs,
    descendants,
    inner,
    needs_bubblewrap,
    open_files,
    run,
    worker_pids,
)

pytestmark = needs_bubblewrap


def test_close_leaves_no_process_and_no_descriptor():
    before = open_files()
    pool = PythonPool(num_workers=2, preload=())

    async def use():
        await pool.start()
        call = asyncio.create_task(pool.run(HANG))
        while not code_runs(pool):
            await asyncio.sleep(0.01)
        found = [below for pid in worker_pids(pool) for below in (pid, *descendants(pid))]
        pool.close()
        pool.close()
        return found, await call

    found, lost = asyncio.run(use())
    assert len(found) >= 3
    assert not any(is_running(pid) for pid in found)
    assert lost.exit == ExitKind.LOST
    assert open_files() == before
    with pytest.raises(ConfigError, match="was closed"):
        run(pool, "1")


def test_close_before_the_first_call_is_fine():
    pool = PythonPool()
    pool.close()
    with pytest.raises(ConfigError, match="was closed"):
        run(pool, "1")


def test_a_zygote_keeps_no_descriptor_of_a_call(small):
    run(small, "1")
    folder = f"/proc/{inner(worker_pids(small)[0])}/fd"
    if not os.access(folder, os.R_OK):
        pytest.skip("only root may look")
    before = len(os.listdir(folder))
    for _ in range(5):
        run(small, "1")
        run(small, HANG, timeout_s=0.1)
    assert len(os.listdir(folder)) == before


# One interpreter for all: each child makes a pool of its own, says which processes it has, and ends in its own way.
SCRIPT = """
import asyncio, os, sys
from aepo_lightning.tools.jail import PythonPool
from tests.tools.jail.parts import descendants
def say(*words):
    # In one piece: the output of all owners is one pipe.
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
async def own(mode):
    pool = PythonPool(num_workers=1, preload=())
    await pool.start()
    call = asyncio.create_task(pool.run("while True: pass"))
    while len(descendants(os.getpid())) < 3:
        await asyncio.sleep(0.01)
    say(mode, os.getpid(), *descendants(os.getpid()))
    if mode == "killed":
        await asyncio.sleep(60)
    if mode == "_exit":
        os._exit(0)
    if mode == "forked":
        call.cancel()
        if os.fork() == 0:
            pool.close()
            try:
                await pool.run("1")
            except Exception as error:
                say("fork", type(error).__name__)
            os._exit(0)
        os.wait()
        say("owner", (await pool.run("6 * 7")).stdout.strip())
    kept.append(pool)
kept = []
for mode in sys.argv[1:]:
    if os.fork() == 0:
        asyncio.run(own(mode))
        sys.exit()
for _ in sys.argv[1:]:
    os.wait()
print("over", flush=True)
"""


def test_no_process_outlives_its_owner_however_it_ends():
    pids, said = {}, {}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "killed", "_exit", "exit", "forked"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as owners:
        for line in owners.stdout:
            mode, *words = line.split()
            if mode in ("killed", "_exit", "exit", "forked"):
                pids[mode] = [int(pid) for pid in words]
            said[mode] = " ".join(words)
            if mode == "killed":
                os.kill(pids[mode][0], signal.SIGKILL)
    assert all(len(found) >= 4 for found in pids.values())
    assert len(pids) == 4
    wait_until(lambda: not any(is_running(pid) for found in pids.values() for pid in found))
    # A fork of the owner can neither use nor end the pool.
    assert (said["fork"], said["owner"]) == ("ConfigError", "42")


# The child of the owner has a copy of every socket of the pool, and lives on.
FORKED = """
import asyncio, os, time
from aepo_lightning.tools.jail import PythonPool
from tests.tools.jail.parts import descendants
pool = PythonPool(num_workers=1, preload=())
asyncio.run(pool.start())
workers = descendants(os.getpid())
child = os.fork()
if child == 0:
    time.sleep(600)
    os._exit(0)
print(os.getpid(), child, *workers, flush=True)
asyncio.run(pool.run(CODE))
time.sleep(600)
"""


@pytest.mark.parametrize("code", ["'1'", "'while True: pass'"], ids=["idle", "busy"])
def test_no_zygote_outlives_its_owner_though_a_fork_of_that_holds_its_socket(code):
    with subprocess.Popen(
        [sys.executable, "-c", FORKED.replace("CODE", code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as owner:
        pid, child, *workers = (int(word) for word in owner.stdout.readline().split())
        try:
            if "while" in code:
                wait_until(lambda: any(descendants(worker) for worker in workers[1:]))
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(is_running(worker) for worker in workers))
            assert len(workers) == 2
            assert is_running(child)
        finally:
            os.kill(child, signal.SIGKILL)
