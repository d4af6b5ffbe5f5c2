"""The event loop is watched: how late it is, and which tool held it."""

import asyncio
import time

from aepo_lightning.contracts.tool import ToolCall
from aepo_lightning.tools import ToolRuntime, tool
from aepo_lightning.tools.runtime.loop_watch import LoopWatch, StandStills
from tests.support.plain_functions import look_up
from tests.support.tool_parts import make_context


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def watched(work):
    clock = Clock()

    async def run():
        watch = LoopWatch(clock=clock)
        try:
            return work(watch, clock)
        finally:
            watch.stop()

    return asyncio.run(run())


def test_the_lag_is_the_longest_since_it_was_asked():
    def work(watch, clock):
        for late_s in (0.5, 0.75, 0.25):
            clock.now += 0.25 + late_s
            watch._beat()
        return watch.take_lag_s(), watch.take_lag_s()

    assert watched(work) == (0.75, 0.0)


def test_a_late_beat_names_the_tools_that_ran_meanwhile(caplog):
    def work(watch, clock):
        with watch.running("before"):
            watch._beat()
        watch._beat()
        with watch.running("hog"):
            pass
        with watch.running("waiting"):
            clock.now += 6.25
            watch._beat()
            watch._beat()

    watched(work)
    assert "has stood still for 6.0 s" in caplog.text
    assert "while Tool(hog), Tool(waiting) ran" in caplog.text
    assert caplog.text.count("stood still") == 1


def test_a_loop_that_stands_still_for_ever_is_told_of_by_a_thread(caplog):
    def work(watch, clock):
        with watch.running("hog"):
            clock.now += 60.0
            until = time.monotonic() + 60
            while "Tool(hog)" not in caplog.text and time.monotonic() < until:
                time.sleep(0.01)  # the loop does not go on

    watched(work)
    assert caplog.text.count("while Tool(hog) ran in this process") == 1


def test_loops_of_a_runtime_that_stand_still_again_and_again_get_a_line_now_and_then(caplog):
    clock = Clock()

    async def run(stand_stills):
        watch = LoopWatch(clock=clock, stand_stills=stand_stills)
        for _ in range(3):
            clock.now += 10.25
            watch._beat()
        watch.stop()

    shared = StandStills(every_s=50.0, clock=clock)
    for _ in range(2):
        asyncio.run(run(shared))
    first, second = [record.getMessage() for record in caplog.records]  # at 10.25 s and at 61.5 s
    assert first.endswith("or the machine was busy. See what else runs here.")
    assert second.endswith("It did so 4 more times since the last such line.")


def ask(made, **arguments):
    runtime = ToolRuntime(tools=[made])

    async def run():
        await runtime.call(ToolCall(tool=made.spec.name, text="", arguments=arguments), make_context())
        await asyncio.sleep(0.3)  # a beat
        await runtime.close()

    asyncio.run(run())
    return runtime.metrics()["loop_lag_s"], runtime.metrics()["loop_lag_s"]


def test_the_runtime_tells_the_lag_and_names_the_tool(caplog):
    async def hold(seconds: float) -> str:
        """Hold the loop."""
        time.sleep(seconds)
        return "x"

    first, second = ask(tool(hold), seconds=1.5)
    assert first > 1.0 > second
    assert "while Tool(hold) ran in this process" in caplog.text


def test_a_function_in_a_process_is_not_under_suspicion():
    assert tool(look_up).is_apart
    assert not tool(isolation="thread")(look_up).is_apart


def test_figures_of_tools_add_up():
    class Counted:
        spec = tool(look_up).spec

        async def __call__(self, _arguments, _context):
            return "x"

        def metrics(self):
            return {"workers": 3}

    assert ToolRuntime(tools=[Counted()]).metrics() == {"loop_lag_s": 0.0, "workers": 3.0}
