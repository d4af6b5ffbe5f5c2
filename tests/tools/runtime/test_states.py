"""States of chains: opened once, copied or replayed at branches, freed at the end, never shared by accident."""

import asyncio
from dataclasses import replace

import pytest

from aepo_lightning.contracts.tool import BranchingToolRunner, StatefulTool, ToolLimits, ToolSpec, ToolState, ToolStatus
from aepo_lightning.tools import ToolRuntime
from aepo_lightning.tools.runtime import arguments
from tests.support.skipped_time import run_skipping
from tests.support.tool_parts import CountingTool, Ledger, answers, call_of, make_context, talk

BOTH = pytest.mark.parametrize("state", [ToolState.FORKABLE, ToolState.REPLAYABLE])


def run(job, tool=None, **settings):
    tool = tool or Ledger()
    runtime = ToolRuntime(tools=[tool], **settings)
    return run_skipping(job(runtime, tool)), tool


def test_it_is_what_the_protocols_ask_for():
    assert isinstance(Ledger(), StatefulTool)
    assert isinstance(ToolRuntime(tools=[Ledger()]), BranchingToolRunner)


def test_a_chain_keeps_its_state_and_no_other_chain_sees_it():
    async def job(runtime, tool):
        first, second = make_context(path=("r", 0)), make_context(path=("r", 1))
        first = await talk(runtime, tool, first, "a")
        second = await talk(runtime, tool, second, "b")
        return await talk(runtime, tool, first, "c"), await talk(runtime, tool, second, "d")

    (first, second), tool = run(job)
    assert answers(first) == ["a", "a,c"]
    assert answers(second) == ["b", "b,d"]
    assert tool.events.count("open") == 2


@BOTH
def test_a_branch_goes_on_from_its_trunk_and_neither_sees_the_other(state):
    async def job(runtime, tool):
        trunk = await talk(runtime, tool, make_context(), "a", "b")
        branch = replace(trunk, seed_path=("r", 0, "b", 2, 0))
        runtime.branch(trunk, branch)
        return await asyncio.gather(talk(runtime, tool, trunk, "c"), talk(runtime, tool, branch, "d"))

    (trunk, branch), tool = run(job, Ledger(state=state))
    assert answers(trunk)[-1] == "a,b,c"
    assert answers(branch)[-1] == "a,b,d"
    assert tool.events.count("fork") == (state is ToolState.FORKABLE)
    assert tool.events.count("a") == (1 if state is ToolState.FORKABLE else 2)


def test_a_branch_from_where_the_trunk_no_longer_stands_is_replayed():
    async def job(runtime, tool):
        trunk = await talk(runtime, tool, make_context(), "a", "b")
        branch = replace(trunk, seed_path=("r", 0, "b", 1, 0), history=trunk.history[:1], call_index=1)
        runtime.branch(trunk, branch)
        return await talk(runtime, tool, branch, "d")

    branch, tool = run(job)
    assert answers(branch)[-1] == "a,d"
    assert "fork" not in tool.events


def test_a_copy_that_fails_is_replayed_instead():
    async def job(runtime, tool):
        trunk = await talk(runtime, tool, make_context(), "a")
        branch = replace(trunk, seed_path=("r", 0, "b", 1, 0))
        runtime.branch(trunk, branch)
        return await talk(runtime, tool, branch, "d")

    branch, tool = run(job, Ledger(fork_error=OSError("no memory")))
    assert answers(branch)[-1] == "a,d"
    assert tool.events == ["open", "a", "fork", "open", "a", "d"]


def test_a_chain_that_goes_on_without_its_state_replays_what_ran_and_nothing_else():
    """So after a crash, or where the cache answered."""

    async def before(runtime, tool):
        return await talk(runtime, tool, make_context(), "a", "fail", "hang", "b")

    async def after(runtime, tool):
        return await talk(runtime, tool, context, "c")

    context, _ = run(before, timeout_s=0.2)
    statuses = [result.status for _, result in context.history]
    assert statuses == [ToolStatus.OK, ToolStatus.ERROR, ToolStatus.TIMEOUT, ToolStatus.OK]
    context, tool = run(after)
    assert answers(context)[-1] == "a,fail,b,c"
    assert tool.events == ["open", "a", "fail", "b", "c"]


def test_a_call_that_was_cut_off_leaves_nothing_half_done():
    async def job(runtime, tool):
        return await talk(runtime, tool, make_context(), "a", "hang", "b")

    context, tool = run(job, timeout_s=0.2)
    assert answers(context)[-1] == "a,b"
    assert tool.events == ["open", "a", "hang", "release", "open", "a", "b"]


@BOTH
def test_ended_chains_leave_no_state(state):
    async def job(runtime, tool):
        trunk = await talk(runtime, tool, make_context(), "a")
        used, unused = (replace(trunk, seed_path=("r", 0, "b", 1, n)) for n in (0, 1))
        runtime.branch(trunk, used)
        runtime.branch(trunk, unused)
        await talk(runtime, tool, used, "d")
        for context in (trunk, used, unused, unused):
            await runtime.release(context)

    _, tool = run(job, Ledger(state=state))
    assert tool.num_open == 0


class Reluctant(Ledger):
    """Never gives up its states, nor itself."""

    async def release(self, _state):
        await asyncio.Event().wait()

    async def close(self):
        await asyncio.Event().wait()


@pytest.mark.parametrize(("signal", "seconds"), [(None, 60.0), (15, 2.0)], ids=["goes on", "told to end"])
def test_a_run_that_is_told_to_end_waits_for_no_tool_that_does_not_tidy_up(monkeypatch, signal, seconds):
    monkeypatch.setattr("aepo_lightning.tools.runtime.tidying.ending_signal", lambda: signal)

    async def job(runtime, tool):
        await talk(runtime, tool, make_context(), "a")
        began = asyncio.get_running_loop().time()
        await runtime.close()
        return asyncio.get_running_loop().time() - began

    took, _ = run(job, Reluctant(), timeout_s=30.0)
    assert took == seconds  # once for the state and once for the tool


def test_chains_that_called_an_unforkable_tool_do_not_branch():
    async def job(runtime, tool):
        context = make_context()
        problems = [runtime.branch_problem(context.history)]
        context = await talk(runtime, tool, context, "a")
        return [*problems, runtime.branch_problem(context.history)]

    problems, _ = run(job, Ledger(state=ToolState.UNFORKABLE))
    assert problems == [None, "ledger can neither copy nor replay its state"]


def test_the_lost_state_of_an_unforkable_tool_is_said_to_be_lost():
    async def before(runtime, tool):
        return await talk(runtime, tool, make_context(), "a")

    async def after(runtime, tool):
        return await runtime.call(call_of(tool, "b"), context)

    context, _ = run(before, Ledger(state=ToolState.UNFORKABLE))
    result, _ = run(after, Ledger(state=ToolState.UNFORKABLE))
    assert (result.status, result.text) == (ToolStatus.UNAVAILABLE, "Error: Tool(ledger) failed: its state was lost.")


def test_a_tool_that_claims_a_state_must_have_one():
    class Forgetful(CountingTool):
        @property
        def spec(self):
            return ToolSpec(name="probe", state=ToolState.FORKABLE)

    with pytest.raises(ValueError, match="must be a `StatefulTool` to be forkable"):
        ToolRuntime(tools=[Forgetful()])


def test_sharing_a_call_does_not_lose_the_state_of_the_chain_that_waited():
    async def job(runtime, tool):
        chains = [make_context(path=("r", number)) for number in range(3)]
        chains = await asyncio.gather(*(talk(runtime, tool, chain, "a") for chain in chains))
        assert tool.events.count("a") == 1
        return await asyncio.gather(*(talk(runtime, tool, c, str(n)) for n, c in enumerate(chains)))

    chains, _ = run(job, Ledger(limits=ToolLimits(is_single_flight=True)))
    assert [answers(chain) for chain in chains] == [["a", f"a,{number}"] for number in range(3)]


def test_a_replay_reads_arguments_with_what_read_them_first(monkeypatch):
    made = []
    read = arguments.ArgumentReader.__init__

    def count(reader, spec):
        made.append(spec.name)
        read(reader, spec)

    monkeypatch.setattr(arguments.ArgumentReader, "__init__", count)

    async def job(runtime, tool):
        first, second = make_context(path=("r", 0)), make_context(path=("r", 1))
        for text in "abc":
            first = await talk(runtime, tool, first, text)
        await talk(runtime, tool, replace(second, history=first.history), "d")

    _, tool = run(job, Ledger(state=ToolState.REPLAYABLE))
    assert tool.events.count("c") == 2
    assert made == ["ledger"]
