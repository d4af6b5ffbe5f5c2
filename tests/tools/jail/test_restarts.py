"""Workers that are lost come back, however long their start fails, and nobody is blamed meanwhile."""

import asyncio
import os
import threading

import pytest

from aepo_lightning.contracts.tool import ToolCall, ToolStatus
from aepo_lightning.errors import ConfigError, ToolUnavailableError
from aepo_lightning.tools import PythonTool, ToolRuntime
from aepo_lightning.tools.jail import ExitKind, PoolBusyError, PoolSettings, PoolUnavailableError, PythonPool, jail
from aepo_lightning.tools.jail.execution import Execution, Isolation, SandboxUnavailableError
from aepo_lightning.tools.jail.inside.job import Job
from aepo_lightning.tools.jail.jail import Jail
from aepo_lightning.tools.jail.slots import SlotQueue
from aepo_lightning.tools.jail.worker import Worker, WorkerError
from tests.support.processes import wait_until
from tests.support.tool_parts import make_context

JOB = Job(code="1", timeout_s=1.0)
DONE = Execution(stdout="1\n", stderr="", exit=ExitKind.OK, exit_code=0, duration_s=0.0, queue_s=0.0)
LOST = Execution(stdout="", stderr="", exit=ExitKind.LOST, exit_code=None, duration_s=0.0, queue_s=0.0)


class FakeWorker(Worker):
    """Is lost at the next call once `loses` is set; cannot be started while there is an `obstacle`."""

    obstacle: BaseException | None = None
    loses = False
    starts: tuple[object, ...] = ()

    def __init__(self, *parts):
        FakeWorker.starts += (parts[0],)
        if FakeWorker.obstacle is not None:
            raise FakeWorker.obstacle
        self.is_usable = True
        self.facts = {"landlock": 0, "preloaded": []}

    async def run(self, _):
        self.is_usable = not FakeWorker.loses
        return LOST if FakeWorker.loses else DONE

    def recover(self):
        pass

    def close(self):
        pass


class Pauses:
    """Counts pauses and lets each end when it is told to."""

    def __init__(self):
        self.asked: list[float] = []
        self.go_on = threading.Semaphore(0)

    def __call__(self, event, pause_s):
        self.asked.append(pause_s)
        while not (event.is_set() or self.go_on.acquire(timeout=0.01)):
            pass


@pytest.fixture
def parts(monkeypatch):
    """What the jail looks for on the host, in which every start is a fake."""
    found = ["bwrap", "python"]
    monkeypatch.setattr(jail, "Worker", FakeWorker)
    monkeypatch.setattr(jail, "self_test", lambda *_: 23)
    monkeypatch.setattr(jail, "_find_parts", lambda _: tuple(found))
    monkeypatch.setattr(Jail, "_describe", lambda *_: Opened.isolation)
    FakeWorker.obstacle, FakeWorker.loses, FakeWorker.starts = None, False, ()
    return found


@pytest.fixture
def start(parts):
    """Opens jails of fakes, and closes them."""
    opened = []

    def start(number):
        pauses = Pauses()
        made = Jail(PoolSettings(num_workers=number, num_active=number), pauses)
        opened.append(made)
        wait_until(lambda: made.num_ready == number)
        return made, pauses

    yield start
    for made in opened:
        made.close()


def lose_all(made, number):
    """Have every worker lost by a call of its own."""
    FakeWorker.loses = True

    async def calls():
        return await asyncio.gather(*(made.run(JOB) for _ in range(number)), return_exceptions=True)

    found = asyncio.run(calls())
    FakeWorker.loses = False
    return found


def assert_recovers(made, pauses, number):
    """Take the obstacle away; after one more pause all workers are there, and calls are answered."""
    FakeWorker.obstacle, FakeWorker.loses = None, False
    pauses.go_on.release()
    wait_until(lambda: made.num_ready == number)
    assert asyncio.run(made.run(JOB)).exit == ExitKind.OK


OBSTACLES = [
    pytest.param(WorkerError("bwrap: No space left on device"), id="full-disk"),
    pytest.param(OSError(11, "Resource temporarily unavailable"), id="no-more-processes"),
    pytest.param(OSError(24, "Too many open files"), id="no-more-descriptors"),
    pytest.param(FileNotFoundError(2, "No such file: bwrap"), id="program-is-gone"),
    pytest.param(ConfigError("all user numbers are taken"), id="no-user-left"),
    pytest.param(ValueError("it said something else"), id="nonsense"),
    pytest.param(MemoryError(), id="memory"),
]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_every_lost_worker_comes_back_after_any_number_of_failed_starts(start, obstacle):
    made, pauses = start(3)
    FakeWorker.obstacle = obstacle
    assert [done.exit for done in lose_all(made, 3)] == [ExitKind.LOST] * 3
    wait_until(lambda: len(pauses.asked) >= 3)
    for _ in range(12):
        pauses.go_on.release()
    wait_until(lambda: len(pauses.asked) >= 15)
    assert made.num_ready == 0
    assert_recovers(made, pauses, 3)  # the first that starts wakes the others


def test_pauses_grow_up_to_half_a_minute(start):
    made, pauses = start(1)
    FakeWorker.obstacle = OSError("full")
    lose_all(made, 1)
    for _ in range(9):
        pauses.go_on.release()
    wait_until(lambda: len(pauses.asked) == 10)
    assert pauses.asked == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]


def test_without_a_worker_calls_are_refused_as_unavailable_until_one_is_back(start):
    made, pauses = start(1)
    FakeWorker.obstacle = OSError("No space left on device")
    FakeWorker.loses = True

    async def lose_with_another_call_waiting():
        return await asyncio.gather(made.run(JOB), made.run(JOB), return_exceptions=True)

    lost, waited = asyncio.run(lose_with_another_call_waiting())
    assert (lost.exit, type(waited)) == (ExitKind.LOST, PoolUnavailableError)
    with pytest.raises(PoolUnavailableError, match=r"cannot be started at the moment: No space left"):
        asyncio.run(made.run(JOB))
    assert_recovers(made, pauses, 1)


def test_closing_ends_the_tries(start):
    made, pauses = start(2)
    FakeWorker.obstacle = OSError("full")
    lose_all(made, 2)
    wait_until(lambda: len(pauses.asked) == 2)
    made.close()
    assert not any(thread.is_alive() for thread in made._threads._threads)


def test_a_program_that_moved_is_found_again(parts, start):
    made, pauses = start(1)
    FakeWorker.obstacle = FileNotFoundError("bwrap")
    lose_all(made, 1)
    wait_until(lambda: pauses.asked)
    parts[0] = "/opt/bin/bwrap"
    assert_recovers(made, pauses, 1)
    assert FakeWorker.starts[-1] == "/opt/bin/bwrap"


def test_a_suspended_queue_takes_calls_again_with_the_first_worker():
    async def scenario():
        queue = SlotQueue[str](max_active=1, max_waiting=9)
        queue.suspend("down")
        for _ in range(2):
            with pytest.raises(PoolUnavailableError, match="down"):
                await queue.acquire()
        queue.add("a")
        queue.suspend("down")  # not while somebody is idle
        return (await queue.acquire()).worker

    assert asyncio.run(scenario()) == "a"


def test_a_pool_that_could_not_be_opened_may_be_opened_later(monkeypatch):
    pool = PythonPool(isolation="bubblewrap")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailableError, match="not installed"):
        asyncio.run(pool.start())
    monkeypatch.setitem(__import__("aepo_lightning.tools.jail.pool", fromlist=["_LADDER"])._LADDER, "bubblewrap",
                        (lambda _: Opened(),))  # fmt: skip
    assert asyncio.run(pool.start()).description == "open"
    pool.close()


def test_a_fork_of_the_owner_ends_no_worker_of_it(monkeypatch):
    pool, ended = PythonPool(), []
    monkeypatch.setattr(pool._opening, "_backend", Opened())
    monkeypatch.setattr(Opened, "close", lambda _: ended.append(1))
    monkeypatch.setattr(pool._opening, "_owner", os.getppid())  # as a child sees it
    pool._opening.close()
    assert not ended
    monkeypatch.setattr(pool._opening, "_owner", os.getpid())
    pool.close()
    assert ended


class Opened:
    isolation, num_ready = Isolation(level="jail", description="open"), 4

    async def run(self, _):
        return DONE

    def close(self):
        pass


@pytest.mark.parametrize(
    "error", [PoolUnavailableError("down"), PoolBusyError("full"), SandboxUnavailableError("none")], ids=repr
)
def test_the_policy_is_not_blamed_for_what_the_sandbox_lacks(monkeypatch, error):
    tool = PythonTool()

    async def refuse(*_, **__):
        raise error

    monkeypatch.setattr(tool._pool, "run", refuse)
    result = asyncio.run(ToolRuntime(tools=[tool]).call(ToolCall(tool="python", text="1"), make_context()))
    assert result.status is ToolStatus.UNAVAILABLE
    assert issubclass(PoolBusyError, ToolUnavailableError)


def test_the_tool_says_how_many_workers_it_has(monkeypatch):
    tool = PythonTool()
    assert tool.metrics() == {"pool_workers": 0.0}
    monkeypatch.setattr(tool._pool._opening, "_backend", Opened())
    assert tool.metrics() == {"pool_workers": 4.0}
    assert ToolRuntime(tools=[tool]).metrics()["pool_workers"] == 4.0


def test_code_that_cannot_be_started_without_a_wall_is_lost(monkeypatch):
    pool = PythonPool(isolation="unsafe")

    def refuse(*_, **__):
        raise OSError(11, os.strerror(11))

    monkeypatch.setattr("aepo_lightning.tools.jail.unsafe.ChildProcess", refuse)
    done = asyncio.run(pool.run("1"))
    assert (done.exit, done.exit_code) == (ExitKind.LOST, None)
    assert "could not be started" in done.stderr
    pool.close()
