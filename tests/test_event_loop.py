"""The thread that runs coroutines for others: it answers, ends what is left, then refuses with its owner's error."""

import asyncio
import gc
from contextvars import ContextVar

import pytest

from aepo_lightning.errors import SignalExit, ToolUnavailableError
from aepo_lightning.event_loop import LoopThread, call_in_thread, cut_off, run_in_event_loop


def closed():
    return ToolUnavailableError("all gone.")


async def answer():
    await asyncio.sleep(0)
    return 42


def test_it_answers_callers_in_other_loops_and_in_none():
    thread = LoopThread("test-loop", closed)
    try:
        assert thread.run(answer()) == 42
        assert asyncio.run(thread.call(answer())) == 42
    finally:
        thread.close()


def test_a_closed_thread_refuses_with_the_error_of_its_owner():
    thread = LoopThread("test-loop", closed)
    thread.close()
    thread.close()
    with pytest.raises(ToolUnavailableError, match="all gone"):
        thread.run(answer())


def test_closing_ends_a_call_that_waits():
    thread = LoopThread("test-loop", closed)

    async def wait_and_close():
        call = asyncio.ensure_future(thread.call(asyncio.sleep(60)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(thread.close)
        await call

    with pytest.raises(ToolUnavailableError, match="all gone"):
        asyncio.run(wait_and_close())


def test_waiting_for_a_result_does_not_spell_it_out():
    spoken = []

    class Loud:
        def __repr__(self):
            spoken.append(self)
            return "loud"

    async def work():
        return Loud()

    assert isinstance(run_in_event_loop(work()), Loud)
    assert not spoken


def test_work_runs_beside_a_running_loop_and_its_error_comes_back():
    async def fail():
        raise ToolUnavailableError("no.")

    async def outer():
        assert run_in_event_loop(answer()) == 42
        run_in_event_loop(fail())

    with pytest.raises(ToolUnavailableError, match="no"):
        asyncio.run(outer())


def test_a_signal_passes_work_with_a_deadline_though_that_may_not_end_the_process_itself(caplog):
    async def told():
        raise SignalExit(15)

    with pytest.raises(SignalExit, match="told to end by SIGTERM"):
        asyncio.run(cut_off(told(), 60.0, "a reward"))
    gc.collect()  # when asyncio complains about errors that nobody looked at
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit, "it tried to end the process"),
        (KeyboardInterrupt, "it raised KeyboardInterrupt"),
        (GeneratorExit, "it raised GeneratorExit"),
        (asyncio.CancelledError, "it raised CancelledError"),
        (StopIteration, "it raised StopIteration"),
    ],
)
def test_whatever_ends_a_thread_is_a_failure_that_its_caller_hears_of(error, told):
    def leave():
        raise error

    with pytest.raises(RuntimeError, match=told):
        asyncio.run(asyncio.wait_for(call_in_thread(leave, "test"), 60.0))


def test_a_thread_has_the_context_of_its_caller():
    place: ContextVar[str] = ContextVar("place")
    place.set("here")
    assert asyncio.run(call_in_thread(place.get, "test")) == "here"
