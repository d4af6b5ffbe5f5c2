"""The life of a pool: deadlines, cancelling, lost workers, loops and threads, and that nothing is left behind."""

import asyncio
import os
import signal
import threading
import time

import pytest

from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.tools.jail import ExitKind, PoolBusyError, PoolSettings, PythonPool
from tests.support.processes import is_running, wait_until
from tests.tools.jail.parts import (
    HANG,
    code_runs,
    inner,
    needs_bubblewrap,
    run,
    worker_pids,
)

pytestmark = needs_bubblewrap


@pytest.fixture
def pair():
    made = PythonPool(num_workers=2, num_active=1, timeout_s=20.0, preload=())
    yield made
    made.close()


@pytest.mark.parametrize(
    "code, output",
    [
        pytest.param("print(1)\nprint(2)", "1\n2", id="prints"),
        pytest.param("x = 20\nx + 1", "21", id="last-expression"),
        pytest.param("'a'", "a", id="echo-is-print-not-repr"),
        pytest.param("[].append(1)", "None", id="none-is-echoed-too"),
        pytest.param("x = 1", "", id="statement"),
        pytest.param("print('é∞')", "é∞", id="non-ascii"),
        pytest.param("'" + "a" * 300_000 + "'.count('a')", "300000", id="long-code"),
        pytest.param("class A: pass\nimport pickle\ntype(pickle.loads(pickle.dumps(A()))).__name__", "A", id="pickle"),
        pytest.param("import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()\nt = 0", "1",
                     id="waits-for-threads"),
        pytest.param("import atexit\natexit.register(print, 1)\nNone", "None\n1", id="runs-exit-functions"),
        pytest.param("import concurrent.futures as f\nwith f.ThreadPoolExecutor(2) as e: a = list(e.map(abs, [-1]))\na",
                     "[1]", id="thread-pool"),
        pytest.param("import tempfile\nwith tempfile.TemporaryFile() as f: n = f.write(b'xy')\nn", "2",
                     id="temporary-file"),
        pytest.param("open('/tmp/a', 'w').write('xy')\nopen('/tmp/a').read()", "xy", id="tmp"),
        pytest.param("import shutil\nopen('a', 'w').write('x')\nshutil.copy2('a', 'b')", "b", id="copies-files"),
        pytest.param("import sys\nprint(1)\nsys.exit(0)", "1", id="exit-without-error"),
        pytest.param("import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('rang'))\n"
                     "signal.setitimer(0, 0.01)\n"
                     "signal.pause()", "rang\nNone", id="own-alarm"),
        pytest.param("a, b = input(), input()\na + b", "xy", id="reads-input"),
    ],
)  # fmt: skip
def test_runs_as_an_interpreter_would_and_echoes_the_last_expression(pool, code, output):
    execution = run(pool, code, stdin="x\ny\n")
    assert (execution.exit, execution.stdout.strip()) == (ExitKind.OK, output), execution.stderr
    assert execution.exit_code == 0


def test_a_traceback_is_short_and_shows_the_code(pool):
    execution = run(pool, "def f(n):\n    return f(n - 1) if n else 1 / 0\nf(50)")
    assert execution.exit == ExitKind.ERROR
    assert execution.stderr.count("File") == 3
    assert "return f(n - 1) if n else 1 / 0" in execution.stderr
    assert execution.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "aepo" not in execution.stderr


@pytest.mark.slow
def test_output_before_a_time_out_is_kept(pool):
    execution = run(pool, "print('so far')\nwhile True:\n    pass", timeout_s=5.0)
    assert (execution.exit, execution.stdout) == (ExitKind.TIMEOUT, "so far\n")


def test_numbers_come_from_the_seed_alone(pool):
    import random

    code = "import random\nrandom.random()"
    assert run(pool, code, seed=3).stdout.strip() == str(random.Random(3).random())
    assert run(pool, code, seed=3).stdout == run(pool, code, seed=3).stdout != run(pool, code, seed=4).stdout


def test_numpy_numbers_come_from_the_seed_alone(pool):
    numpy = pytest.importorskip("numpy")
    expected = str(numpy.random.RandomState(5).rand())
    assert [run(pool, "import numpy\nprint(float(numpy.random.rand()))", seed=5).stdout.strip() for _ in range(4)] == [
        expected
    ] * 4


def test_sets_have_the_same_order_on_every_worker():
    orders = set()
    for _ in range(2):
        pool = PythonPool(num_workers=1, preload=())
        orders.add(run(pool, "{'a', 'b', 'c', 'd', 'e', 'f', 'g'}").stdout)
        pool.close()
    assert len(orders) == 1


def test_the_deadline_starts_when_a_call_gets_a_worker(small):
    async def both():
        return await asyncio.gather(small.run("import time\ntime.sleep(5.5)"), small.run("1", timeout_s=5.0))

    first, second = asyncio.run(both())
    assert (first.exit, second.exit) == (ExitKind.OK, ExitKind.OK)
    assert second.queue_s >= 5.0


def test_a_hang_does_not_hold_up_other_calls(pair):
    async def together():
        await pair.start()
        hang = asyncio.create_task(pair.run(HANG, timeout_s=15.0))
        await asyncio.sleep(0)
        others = [await pair.run("1") for _ in range(5)]
        is_done = hang.done()
        hang.cancel()
        return others, is_done

    others, is_done = asyncio.run(together())
    assert all(other.exit == ExitKind.OK for other in others)
    assert not is_done


def test_the_more_a_call_uses_of_the_processor_the_lower_its_priority(small):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    show = "print(os.getpriority(os.PRIO_PROCESS, 0))"
    burn = "end = time.process_time() + 0.5\nwhile time.process_time() < end:\n    pass"
    worked = run(small, f"import os, time\n{show}\n{burn}\n{show}").stdout.split()
    assert int(worked[0]) == own
    assert int(worked[1]) == max(own, 10), "the last step comes after three seconds"
    slept = run(small, f"import os, time\ntime.sleep(0.5)\n{show}").stdout
    assert int(slept) == own, "who sleeps takes nothing from others"


def test_at_the_deadline_the_process_is_gone(small):
    execution = run(small, HANG, timeout_s=0.3)
    assert execution.exit == ExitKind.TIMEOUT
    assert not code_runs(small)


def test_cancelling_ends_the_code_and_frees_the_worker(small):
    async def cancel():
        await small.start()
        pids = worker_pids(small)
        call = asyncio.create_task(small.run(HANG))
        while not code_runs(small):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        after = await small.run("1 + 1")
        return pids, after

    pids, after = asyncio.run(cancel())
    assert after.stdout == "2\n"
    assert worker_pids(small) == pids
    assert not code_runs(small)


def test_cancelling_a_call_that_waits_takes_no_worker_away(small):
    async def cancel():
        await small.start()
        running = asyncio.create_task(small.run("import time\ntime.sleep(0.5)\n'ran'"))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(small.run(HANG)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return (await running).stdout, (await small.run("1")).stdout

    assert asyncio.run(cancel()) == ("ran\n", "1\n")


@pytest.mark.slow
def test_a_full_queue_refuses_further_calls():
    pool = PythonPool(num_workers=1, preload=(), max_waiting=1)

    async def overfill():
        await pool.start()
        calls = [asyncio.create_task(pool.run(f"import time\ntime.sleep({nap})\n1")) for nap in (5, 0)]
        await asyncio.sleep(0.05)
        with pytest.raises(PoolBusyError, match="busy: 1 calls wait"):
            await pool.run("1")
        return [call.stdout for call in await asyncio.gather(*calls)]

    assert asyncio.run(overfill()) == ["1\n", "1\n"]
    pool.close()


def test_a_worker_killed_from_outside_is_replaced_and_its_call_says_so(small):
    async def kill():
        await small.start()
        (pid,) = worker_pids(small)
        call = asyncio.create_task(small.run(HANG))
        while not code_runs(small):
            await asyncio.sleep(0.01)
        os.kill(inner(pid), signal.SIGKILL)
        lost = await call
        return pid, lost, await small.run("1 + 1")

    pid, lost, after = asyncio.run(kill())
    assert (lost.exit, lost.exit_code) == (ExitKind.LOST, None)
    assert "ended from outside" in lost.stderr
    assert after.stdout == "2\n"
    assert pid not in worker_pids(small)
    assert not is_running(pid)


def test_a_worker_whose_bubblewrap_was_killed_still_ends_with_the_pool():
    pool = PythonPool(num_workers=1, preload=())
    asyncio.run(pool.start())
    (pid,) = worker_pids(pool)
    zygote = inner(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    # As root bubblewrap may not signal the zygote, which has another user: it serves on. Else it went along.
    asyncio.run(pool.run("1"))
    assert run(pool, "1").stdout == "1\n"
    pool.close()
    assert not is_running(zygote)


def test_a_zygote_that_does_not_answer_is_replaced(small):
    async def stop():
        await small.start()
        (pid,) = worker_pids(small)
        os.kill(inner(pid), signal.SIGSTOP)
        lost = await small.run("1", timeout_s=0.1)
        return pid, lost, await small.run("1 + 1")

    pid, lost, after = asyncio.run(stop())
    assert lost.exit == ExitKind.LOST
    assert after.stdout == "2\n"
    assert pid not in worker_pids(small)


def test_serves_several_event_loops_one_after_another_and_in_threads(pair):
    asyncio.run(pair.start())
    pids = sorted(worker_pids(pair))
    answers = []

    def call(number):
        answers.extend(run(pair, str(number)).stdout == f"{number}\n" for _ in range(25))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 100
    assert run(pair, "4").stdout == "4\n"
    assert set(pids) <= set(worker_pids(pair))  # none had to be replaced


def test_workers_outlive_the_thread_that_opened_the_pool(small):
    opener = threading.Thread(target=lambda: asyncio.run(small.start()))
    opener.start()
    opener.join()
    pids = worker_pids(small)
    time.sleep(0.1)  # the kernel ends bubblewrap with the thread that started it, so that must be another one
    assert all(is_running(pid) for pid in pids)
    assert run(small, "1").stdout == "1\n"
    assert worker_pids(small) == pids


def test_a_loop_that_ends_in_the_middle_of_a_call_gives_its_worker_back(small):
    async def leave():
        call = asyncio.create_task(small.run(HANG))
        while not (small._opening.is_open and code_runs(small)):
            await asyncio.sleep(0.01)
        assert not call.done()

    asyncio.run(leave())
    assert run(small, "1").stdout == "1\n"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_no_call_can_keep_is_refused(pool, timeout_s):
    with pytest.raises(ConfigError, match="`timeout_s` must be positive and finite"):
        run(pool, "1", timeout_s=timeout_s)


def test_code_that_is_too_long_is_refused(pool):
    with pytest.raises(ToolError, match="too long"):
        run(pool, "#" * (1 << 21))


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"timeout_s": 0.0}, "`timeout_s` must be positive"),
        ({"timeout_s": float("inf")}, "`timeout_s` must be positive and finite"),
        ({"timeout_s": 1e9}, "`timeout_s` must be positive and finite, at most 86400"),
        ({"max_output_bytes": 1 << 26}, "`max_output_bytes` must be at most"),
        ({"max_input_bytes": 1 << 26}, "`max_input_bytes` must be at most"),
        ({"num_workers": 0}, "`num_workers` must be at least 1"),
        ({"memory_mb": 10}, "`memory_mb` must be at least 256"),
        ({"isolation": "none"}, "`isolation` must be one of"),
        ({"isolation": "remote"}, "`remote_url` must be set"),
        ({"max_waiting": 0}, "`max_waiting` must be at least 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_cannot_work_are_refused(settings, rule):
    with pytest.raises(ConfigError, match=rule):
        PoolSettings(**settings)
