"""Sessions: calls that build on one another, and branches that go separate ways."""

import asyncio

import pytest

from aepo_lightning.errors import ToolError
from aepo_lightning.tools.jail import ExitKind, PythonPool, PythonSession, SandboxUnavailableError
from aepo_lightning.tools.jail.execution import Execution
from tests.tools.jail.parts import needs_bubblewrap


def play(pool, *codes, seed=0):
    """Run codes one after another in one session; return what each wrote."""

    async def scenario():
        session = await pool.session()
        return [await session.run(code, seed=seed) for code in codes]

    return asyncio.run(scenario())


@needs_bubblewrap
@pytest.mark.parametrize(
    "codes, output",
    [
        pytest.param(["x = 20", "x += 1", "x"], "21\n", id="names"),
        pytest.param(["import math", "math.floor(2.5)"], "2\n", id="imports"),
        pytest.param(["open('f', 'w').write('kept')", "open('f').read()"], "kept\n", id="files"),
        pytest.param(["class A:\n    n = 3", "A().n"], "3\n", id="classes"),
        pytest.param(["print('once')", "print('twice')"], "twice\n", id="earlier-output-is-not-repeated"),
        pytest.param(["import os\nos.write(1, b'raw')", "2"], "2\n", id="nor-that-of-descriptors"),
        pytest.param(["x = 1\n1/0\nx = 2", "x"], "1\n", id="state-before-an-error"),
        pytest.param(["import sys\nx = 1\nsys.exit(0)", "x"], "1\n", id="state-before-an-exit"),
        pytest.param(["import os\nx = 1\nos._exit(0)", "x"], "1\n", id="state-before-a-hard-exit"),
        pytest.param(["import sys\nsys.stdout = None", "print(1)"], "1\n", id="a-call-has-its-own-streams"),
        pytest.param(["import sys, io\nsys.stdout = io.StringIO()", "1"], "1\n", id="also-after-a-redirection"),
        pytest.param(["import sys\nsys.stdout.close()\nsys.stderr.close()", "1"], "1\n", id="also-after-closing-them"),
        pytest.param(["import sys\nsys.stdout.detach()", "1"], "1\n", id="also-after-detaching-one"),
        pytest.param(["import os\nos.close(1)\nos.close(2)\n0", "1"], "1\n", id="also-after-closing-descriptors"),
        pytest.param(["print('half a line', end='')", "1"], "1\n", id="nor-half-a-line"),
        pytest.param(["import atexit\natexit.register(print, 'bye')", "1"], "1\n", id="exit-functions-run-once"),
        pytest.param([
            "import threading, time\nx = []\nt = lambda: (time.sleep(0.1), x.append(1))\n"
            "threading.Thread(target=t).start()", "x"
        ], "[1]\n", id="threads-have-ended"),
        pytest.param(["import signal\nsignal.alarm(1)", "import time\ntime.sleep(1.2)\n1"], "1\n", id="no-alarms"),
    ],
)  # fmt: skip
def test_a_call_finds_what_earlier_ones_left(pool, codes, output):
    last = play(pool, *codes)[-1]
    assert (last.exit, last.stdout) == (ExitKind.OK, output), last.stderr


@needs_bubblewrap
def test_numbers_go_on_as_in_separate_calls(pool):
    first, second = play(pool, "import random\nx = random.random()\nx", "random.random() == x, x", seed=5)
    assert second.stdout == f"(True, {first.stdout.strip()})\n"  # each call has its own seed, which is the same here


@needs_bubblewrap
def test_code_that_was_stopped_leaves_no_state(pool):
    async def scenario():
        session = await pool.session()
        await session.run("x = 1")
        stopped = await session.run("x = 2\nwhile True:\n    pass", timeout_s=0.5)
        return stopped, await session.run("x")

    stopped, after = asyncio.run(scenario())
    assert (stopped.exit, after.stdout) == (ExitKind.TIMEOUT, "1\n")


@needs_bubblewrap
def test_a_fork_takes_the_state_along_and_goes_its_own_way(pool):
    async def scenario():
        trunk = await pool.session()
        await trunk.run("x = [1]")
        branch = await trunk.fork()
        await branch.run("x.append('branch')")
        await trunk.run("x.append('trunk')")
        return (await trunk.run("x")).stdout, (await branch.run("x")).stdout

    assert asyncio.run(scenario()) == ("[1, 'trunk']\n", "[1, 'branch']\n")


@needs_bubblewrap
def test_sessions_do_not_see_each_other(pool):
    play(pool, "leaked = 1\nopen('leaked', 'w')")
    assert "NameError" in play(pool, "leaked")[0].stderr
    assert play(pool, "import os\nos.listdir()")[0].stdout == "[]\n"


async def echo(job):
    await asyncio.sleep(0)
    written = "".join(code for code, _ in job.history) + job.code
    return Execution(stdout=written, stderr="", exit=ExitKind.OK, exit_code=0, duration_s=0.0, queue_s=0.0)


def test_calls_of_one_session_wait_for_one_another():
    async def scenario():
        session = PythonSession(echo, timeout_s=60.0, max_bytes=100)
        return [done.stdout for done in await asyncio.gather(*(session.run(code) for code in "abc"))]

    assert asyncio.run(scenario()) == ["a", "ab", "abc"]


def test_a_session_that_holds_too_much_code_refuses_more():
    async def scenario():
        session = PythonSession(echo, timeout_s=60.0, max_bytes=5)
        await session.run("abc")
        with pytest.raises(ToolError, match="6 bytes, but at most 5"):
            await session.run("abc")
        return session.history

    assert asyncio.run(scenario()) == (("abc", 0),)


def test_sessions_are_for_the_jail_only():
    pool = PythonPool(isolation="unsafe")
    with pytest.raises(SandboxUnavailableError, match="Sessions need the local jail"):
        asyncio.run(pool.session())
    pool.close()
