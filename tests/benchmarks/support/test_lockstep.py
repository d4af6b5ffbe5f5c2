"""The other side of the rollout benchmark: the same trees, in rounds."""

import asyncio

import pytest

from aepo_lightning.branching import EntropyBalanced
from aepo_lightning.rollout import RolloutSampler
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from benchmarks.support.lockstep import Barrier, LockStepEngine, LockStepTools, MeteredEngine
from benchmarks.support.simulated import BurstEngine, BurstProcess, BurstReward
from tests.support.builders import ScriptedEngine, canonical, grow, make_parts, make_question, random_script, untimed

QUESTIONS = [make_question(f"q{index}") for index in range(4)]


class Log:
    """Engine and tools that write down when their work begins and ends."""

    def __init__(self, engine, tools):
        self.engine, self.tools = engine, tools
        self.events = []
        self.tool_names, self.max_model_len, self.tokenizer = tools.tool_names, engine.max_model_len, engine.tokenizer

    async def generate(self, prompt_ids, params, on_probe=None):
        self.events.append("generate")
        generation = await self.engine.generate(prompt_ids, params, on_probe)
        self.events.append("generated")
        return generation

    async def call(self, call, context):
        self.events.append("call")
        await asyncio.sleep(0)
        result = await self.tools.call(call, context)
        self.events.append("called")
        return result


def in_rounds(script, pauses=lambda _: 0, **changes):
    """Grow trees in lock-step; return them and the log of what ran below the barrier."""
    log = Log(ScriptedEngine(script, pauses=pauses), ToolRuntime(tools=(DocumentSearch(),)))
    barrier = Barrier()
    engine = LockStepEngine(log, barrier)
    engine.tokenizer = log.tokenizer
    parts = make_parts(engine, tools=LockStepTools(log, barrier), **changes)
    return RolloutSampler(parts).rollout(QUESTIONS, 0), log.events


def test_rounds_do_not_change_independent_trajectories():
    trees, _ = in_rounds(random_script())
    ours = grow(ScriptedEngine(random_script()), QUESTIONS)
    assert list(map(canonical, untimed(trees))) == list(map(canonical, untimed(ours)))


def test_every_phase_begins_when_the_one_before_is_over():
    _, events = in_rounds(random_script(), pauses=lambda p: p.seed % 7, branch_policy=EntropyBalanced(gamma=1.0))
    running = {"generate": 0, "call": 0}
    for event in events:
        kind, change = {"generate": ("generate", 1), "generated": ("generate", -1), "call": ("call", 1)}.get(
            event, ("call", -1)
        )
        running[kind] += change
        assert min(running.values()) == 0, "generations and tool calls never overlap"


def test_a_phase_takes_everybody_along():
    _, events = in_rounds(random_script(p_call=1.0, p_cut=0.0), pauses=lambda p: p.seed % 7, max_tool_calls=3)
    num_chains = sum(1 for _ in QUESTIONS) * 2  # half of the budget of 4 starts at the root
    assert events[:num_chains] == ["generate"] * num_chains


def test_the_meter_counts_tokens_and_busy_time():
    engine = MeteredEngine(ScriptedEngine(random_script()))
    engine.tokenizer = engine.engine.tokenizer
    trees = grow(engine, QUESTIONS)
    assert engine.num_tokens == sum(tree.num_generated_tokens for tree in trees)
    assert engine.busy_s > 0
    assert engine.num_running == 0


@pytest.mark.parametrize(("p_enter", "p_stay", "share"), [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)], ids=["never", "always"])
def test_bursts_follow_their_process(p_enter, p_stay, share):
    process = BurstProcess(p_enter=p_enter, p_stay=p_stay, num_calls=5, noise=0.0)
    engine = BurstEngine(process, 2)
    questions = [engine.question(index) for index in range(2)]
    trees = RolloutSampler(make_parts(engine, reward=BurstReward(process))).rollout(questions, 0)
    decisions = [decision for tree in trees for decision in tree.decisions]
    assert len(decisions) == 2 * 4 * 5
    assert sum(decision.is_high_entropy for decision in decisions) == share * len(decisions)
    assert all(leaf.num_tool_calls == 5 for tree in trees for leaf in tree.leaves)
