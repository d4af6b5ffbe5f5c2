"""Whatever a cache does, calls are answered."""

import asyncio
import threading

import pytest

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolLimits, ToolResult, ToolStatus
from aepo_lightning.tools import SQLiteCache, ToolRuntime, tool
from aepo_lightning.tools.runtime import kept_answers
from tests.support.tool_parts import CountingTool, call_of, make_context

KEPT = ToolLimits(cache_ttl_s=None, is_single_flight=True)


class BrokenCache:
    """Fails where it is told to."""

    def __init__(self, broken):
        self.broken = broken

    def _do(self, what):
        if what == self.broken:
            raise RuntimeError(what)

    def get(self, _key):
        self._do("get")

    def put(self, _key, _tool, _answer, _ttl_s):
        self._do("put")

    def flush(self):
        self._do("flush")

    def close(self):
        self._do("close")


@pytest.mark.parametrize("broken", ["get", "put", "flush"])
def test_a_cache_that_fails_costs_one_line_and_no_call(broken, caplog):
    probe = CountingTool(limits=KEPT)
    runtime = ToolRuntime(tools=[probe], cache=BrokenCache(broken))

    async def run():
        results = [await runtime.call(call_of(probe, text), make_context()) for text in "ab"]
        await runtime.close()
        return results

    assert [result.text for result in asyncio.run(run())] == ["a", "b"]
    assert caplog.text.count("cannot be kept or found") == 1


def test_a_cache_that_takes_its_time_to_flush_holds_nobody_up():
    flushing, heard = threading.Event(), []

    class SlowCache(BrokenCache):
        def flush(self):
            heard.append(flushing.wait(30))

    runtime = ToolRuntime(tools=[CountingTool()], cache=SlowCache(""))

    async def run():
        closing = asyncio.create_task(runtime.close())
        await asyncio.sleep(0)
        flushing.set()  # reached only if the loop goes on meanwhile
        await closing

    asyncio.run(run())
    assert heard == [True]


def test_a_cache_that_never_ends_its_flush_does_not_keep_the_loop_from_ending(monkeypatch, caplog):
    monkeypatch.setattr(kept_answers, "_FLUSH_S", 0.05)
    is_over = threading.Event()

    class StuckCache(BrokenCache):
        def flush(self):
            is_over.wait(30)

    timer = threading.Timer(20, is_over.set)  # or a failing test would hang
    timer.start()
    asyncio.run(ToolRuntime(tools=[CountingTool()], cache=StuckCache("")).close())
    assert not is_over.is_set()
    assert "cannot be kept or found" in caplog.text
    timer.cancel()
    is_over.set()


def test_a_question_that_no_json_can_hold_is_answered_without_the_cache():
    circle = {}
    circle["circle"] = circle
    question = Question(question_id="q", messages=(), answers=(), metadata=circle)
    probe = CountingTool(limits=KEPT, is_question_bound=True)
    runtime = ToolRuntime(tools=[probe], cache=BrokenCache(""))
    result = asyncio.run(runtime.call(call_of(probe), make_context(question=question)))
    assert result.status is ToolStatus.OK


QUESTIONS = [Question(question_id=each, messages=(), answers=(each,)) for each in "ab"]


def ask_both(runtime, contexts):
    call = ToolCall(tool="gold", text="x")

    async def run():
        return await asyncio.gather(*(runtime.call(call, context) for context in contexts))

    return [result.text for result in asyncio.run(run())]


async def gold(text: str, context) -> str:
    """Tell what only the chain knows."""
    await asyncio.sleep(0)
    return f"{context.question.answers[0]} {context.call_index} {[result.text for _, result in context.history]}"


@pytest.mark.parametrize("limits", [{"is_single_flight": True}, {"cache_ttl_s": None}], ids=["flight", "cache"])
def test_what_a_function_sees_of_its_chain_belongs_to_the_key(limits, tmp_path):
    history = ((ToolCall(tool="other", text="y"), ToolResult(text="before")),)
    contexts = [
        make_context(question=QUESTIONS[0]),
        make_context(question=QUESTIONS[1]),
        make_context(history, question=QUESTIONS[0]),
    ]
    runtime = ToolRuntime(tools=[tool(limits=limits)(gold)], cache=SQLiteCache(tmp_path / "cache.sqlite"))
    assert ask_both(runtime, contexts) == ["a 0 []", "b 0 []", "a 1 ['before']"]
    assert ask_both(runtime, contexts[::-1]) == ["a 1 ['before']", "b 0 []", "a 0 []"]


def test_chains_of_one_question_that_stand_at_the_same_place_share_an_answer():
    runtime = ToolRuntime(tools=[tool(limits={"is_single_flight": True})(gold)])

    async def run():
        chains = (make_context(path=("r", number), question=QUESTIONS[0]) for number in range(3))
        return await asyncio.gather(*(runtime.call(ToolCall(tool="gold", text="x"), chain) for chain in chains))

    assert [result.is_shared for result in asyncio.run(run())] == [False, True, True]
