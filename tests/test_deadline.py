"""Deadlines hold whatever a tool does, and whatever it does becomes an observation."""

import asyncio
import gc
import sys

import pytest

from aepo_lightning import event_loop
from aepo_lightning.contracts.tool import ToolLimits, ToolSpec, ToolStatus
from aepo_lightning.event_loop import CutOffError, cut_off
from aepo_lightning.tools import ToolRuntime
from tests.support.skipped_time import run_skipping
from tests.support.tool_parts import CountingTool, Ledger, call_of, make_context, talk


class ScriptedTool:
    """Does what a test wants."""

    def __init__(self, behave, **limits):
        self.behave = behave
        self.name = "probe"
        self.spec = ToolSpec(name="probe", limits=ToolLimits(**limits))

    async def __call__(self, arguments, _context):
        return await self.behave(arguments["text"])


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(event_loop, "_GRACE_S", 0.02)


async def never_ends(_):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


def ask(tool, **settings):
    return asyncio.run(ToolRuntime(tools=[tool], **settings).call(call_of(tool), make_context()))


def test_a_tool_that_never_stops_is_left_behind_with_a_warning_and_the_loop_ends_without_it(caplog):
    result = ask(ScriptedTool(never_ends, deadline_s=0.05))  # the end of `asyncio.run` waits for every task it knows
    assert (result.status, result.text) == (ToolStatus.TIMEOUT, "Error: Tool(probe) timed out after 0.05 s.")
    assert "Tool(probe) goes on after it was cancelled" in caplog.text
    gc.collect()
    assert "was destroyed" not in caplog.text


def test_a_tool_that_never_stops_gives_its_slot_back():
    tool = ScriptedTool(never_ends, deadline_s=0.05)
    runtime = ToolRuntime(tools=[tool], max_concurrent_calls=1)

    async def run():
        return await asyncio.gather(*(runtime.call(call_of(tool), make_context()) for _ in range(3)))

    assert [result.status for result in run_skipping(run())] == [ToolStatus.TIMEOUT] * 3


def test_a_caller_that_is_cancelled_does_not_wait_for_work_that_does_not_stop():
    async def run():
        work = asyncio.create_task(cut_off(never_ends(""), 60.0, "it"))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await work

    asyncio.run(run())


async def cancels_itself(_):
    raise asyncio.CancelledError


async def mixed_group(_):
    raise BaseExceptionGroup("several", [asyncio.CancelledError(), ValueError("no")])


async def leaves(_):
    sys.exit(3)


async def speechless(_):
    class SpeechlessError(Exception):
        def __str__(self):
            raise ValueError

    raise SpeechlessError


@pytest.mark.parametrize(
    ("behave", "text"),
    [
        (cancels_itself, "it cancelled itself"),
        (mixed_group, "it raised BaseExceptionGroup"),
        (leaves, "it tried to end the process"),
        (speechless, "SpeechlessError, which cannot say what it is"),
    ],
    ids=["cancelled", "group", "exit", "speechless"],
)
def test_whatever_a_tool_raises_becomes_an_observation(behave, text):
    result = ask(ScriptedTool(behave))
    assert result.status is ToolStatus.ERROR
    assert text in result.text


def test_work_that_ends_in_time_passes_unchanged():
    async def answer():
        return 7

    assert asyncio.run(cut_off(answer(), 60.0, "it")) == 7


def test_work_that_is_late_says_so():
    with pytest.raises(CutOffError, match=r"longer than 0\.01 s"):
        asyncio.run(cut_off(asyncio.sleep(60), 0.01, "it"))


class StuckLedger(Ledger):
    """Hangs where it is told to."""

    stuck_at = ""

    async def _maybe(self, where):
        if self.stuck_at == where:
            await asyncio.sleep(60)

    async def open(self, context):
        await self._maybe("open")
        return await super().open(context)

    async def fork(self, state):
        await self._maybe("fork")
        return await super().fork(state)

    async def release(self, state):
        await super().release(state)
        await self._maybe("release")

    async def close(self):
        await self._maybe("close")


@pytest.mark.parametrize("where", ["open", "fork", "release", "close"])
def test_states_and_ends_that_hang_do_so_until_the_deadline_only(where):
    tool = StuckLedger(limits=ToolLimits(deadline_s=0.2))
    tool.stuck_at = where
    runtime = ToolRuntime(tools=[tool])

    async def run():
        trunk = await talk(runtime, tool, make_context(), "a")
        branch = make_context(trunk.history, path=("r", 0, "b", 1, 0))
        runtime.branch(trunk, branch)
        branch = await talk(runtime, tool, branch, "b")
        for context in (trunk, branch):
            await runtime.release(context)
        await runtime.close()
        return trunk, branch

    # Far beyond all deadlines together.
    trunk, branch = run_skipping(asyncio.wait_for(run(), 20))
    assert trunk.history[0][1].status is (ToolStatus.TIMEOUT if where == "open" else ToolStatus.OK)
    assert branch.history[-1][1].text == {"open": trunk.history[0][1].text}.get(where, "a,b")
    assert tool.num_open == 0


def test_a_state_that_cannot_be_opened_is_no_fault_of_the_call_and_is_not_replayed():
    class Closed(Ledger):
        async def open(self, context):
            if not self.events:
                self.events.append("refused")
                raise OSError("no memory")
            return await super().open(context)

    tool = Closed()
    runtime = ToolRuntime(tools=[tool])
    chain = asyncio.run(talk(runtime, tool, make_context(), "a", "b"))
    assert [result.status for _, result in chain.history] == [ToolStatus.UNAVAILABLE, ToolStatus.OK]
    assert chain.history[1][1].text == "b"


def test_a_tool_that_cannot_be_closed_takes_nothing_with_it(caplog):
    class Sticky(CountingTool):
        async def close(self):
            raise OSError("stuck")

    class Closing(CountingTool):
        is_closed = False

        async def close(self):
            self.is_closed = True

    sticky, closing = Sticky(name="sticky"), Closing(name="closing")
    asyncio.run(ToolRuntime(tools=[sticky, closing]).close())
    assert closing.is_closed
    assert "Tool(sticky) could not be closed" in caplog.text


def test_calls_of_one_chain_that_wait_for_each_other_hold_one_slot():
    tool, other = Ledger(limits=ToolLimits(max_concurrent_calls=2, deadline_s=0.2)), make_context(path=("r", 1))
    runtime = ToolRuntime(tools=[tool])

    async def run():
        hung = [asyncio.create_task(runtime.call(call_of(tool, "hang"), make_context())) for _ in range(4)]
        await asyncio.sleep(0)
        result = await runtime.call(call_of(tool, "b"), other)
        num_done = sum(task.done() for task in hung)
        await asyncio.gather(*hung)
        return result, num_done

    result, num_done = run_skipping(run())
    assert (result.text, num_done) == ("b", 0)


def test_a_queue_has_a_bound_though_the_tool_names_none():
    tool = CountingTool()
    runtime = ToolRuntime(tools=[tool], max_concurrent_calls=1, max_queued_calls=2)

    async def run():
        return await asyncio.gather(*(runtime.call(call_of(tool, each), make_context()) for each in "abcde"))

    statuses = [result.status for result in asyncio.run(run())]
    assert statuses == [ToolStatus.OK] * 3 + [ToolStatus.BUSY] * 2
    with pytest.raises(ValueError, match="`max_queued_calls` must not be negative"):
        ToolRuntime(tools=[tool], max_queued_calls=-1)
