"""A batch of rollouts in which one tool call in twenty hangs to its deadline, beside the same batch without hangs.

Chains call a tool four times and answer; the engine computes nothing. The tool answers after a time drawn from a
log-normal distribution. One chain in five hangs once, at one of its four calls: one call in twenty, and none of them
waits for two deadlines. The other side goes in lock-step, as the released code does: every round waits for its slowest
call.
"""

import asyncio
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from time import perf_counter
from typing import Any

from aepo_lightning.branching import NeverBranch
from aepo_lightning.budgets import RootShare
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.tool import ToolContext, ToolLimits, ToolSpec
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.tools import ToolRuntime
from benchmarks.support.lockstep import Barrier, LockStepEngine, LockStepTools
from benchmarks.support.parts import Part
from benchmarks.support.simulated import ScriptedEngine, no_reward, place_question, place_tokenizer

NUM_CALLS = 4
GROUP = 8
TURN_LENGTH = 8
MEDIAN_S, SIGMA, LONGEST_S = 0.2, 0.5, 1.5
CHAINS_PER_HANG = 5


@dataclass
class UnsteadyTool:
    """Answers after a while, and hangs where it was told to."""

    deadline_s: float
    slots: int
    is_hanging: bool
    num_calls: int = 0
    num_hangs: int = 0

    @property
    def spec(self) -> ToolSpec:
        """A search with a deadline."""
        limits = ToolLimits(deadline_s=self.deadline_s, max_concurrent_calls=self.slots)
        return ToolSpec(name="search", limits=limits)

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer after the time that belongs to this call of this chain."""
        chain = Random(f"{context.question.question_id}/{context.seed_path}")
        hangs_at = chain.randrange(NUM_CALLS * CHAINS_PER_HANG)
        waits = [chain.lognormvariate(math.log(MEDIAN_S), SIGMA) for _ in range(NUM_CALLS)]
        self.num_calls += 1
        if self.is_hanging and context.call_index == hangs_at:
            self.num_hangs += 1
            await asyncio.Event().wait()
        await asyncio.sleep(min(LONGEST_S, waits[context.call_index]))
        return str(arguments["text"])


def measure(num_questions: int = 64, deadline_s: float = 3.0, repeats: int = 5) -> Part:
    """Measure batches with and without hangs in turn, and both in lock-step once.

    Args:
        num_questions: Of a batch, with `GROUP` chains each.
        deadline_s: Of the tool.
        repeats: Pairs of batches.
    """
    batch = _Batch(num_questions, deadline_s)
    batch.run(is_hanging=False, is_lock_step=False)  # the first one allocates
    pairs = [(batch.run(False, False), batch.run(True, False)) for _ in range(repeats)]
    clean, hanging = batch.run(False, True), batch.run(True, True)
    extra = statistics.median(slow - fast for fast, slow in pairs)
    share = batch.num_hangs / batch.num_calls
    figures = {
        "chains": num_questions * GROUP,
        "deadline_s": deadline_s,
        "hanging_share": round(share, 4),
        "clean_s": round(statistics.median(fast for fast, _ in pairs), 2),
        "hanging_s": round(statistics.median(slow for _, slow in pairs), 2),
        "extra_s": round(extra, 2),
        "lock_step_clean_s": round(clean, 2),
        "lock_step_hanging_s": round(hanging, 2),
        "lock_step_extra_s": round(hanging - clean, 2),
        "ratio": round(hanging / statistics.median(slow for _, slow in pairs), 2),
    }
    goals = {
        "hangs_cost_at_most_the_deadline_s": (round(extra, 2), "<=", deadline_s),
        "hanging_share": (round(share, 4), ">=", 0.04),
    }
    return Part(figures=figures, goals=goals)


class _Batch:
    def __init__(self, num_questions: int, deadline_s: float) -> None:
        self._questions = [place_question(index, TURN_LENGTH) for index in range(num_questions)]
        self._deadline_s = deadline_s
        self._tokenizer = place_tokenizer()
        self.num_calls = self.num_hangs = 0

    def run(self, is_hanging: bool, is_lock_step: bool) -> float:
        """Return the seconds that the batch took."""
        tool = UnsteadyTool(self._deadline_s, len(self._questions) * GROUP, is_hanging)
        engine, tools = ScriptedEngine(self._tokenizer, NUM_CALLS, TURN_LENGTH), ToolRuntime(tools=[tool])
        barrier = Barrier()
        parts = RolloutParts(
            engine=LockStepEngine(engine, barrier) if is_lock_step else engine,
            tools=LockStepTools(tools, barrier) if is_lock_step else tools,
            reward=no_reward,
            chat_format=TagFormat(self._tokenizer, ("search",)),
            allocator=RootShare(),
            branch_policy=NeverBranch(),
            settings=RolloutSettings(budget=GROUP, max_response_tokens=1 << 19),
        )
        started = perf_counter()
        trees = RolloutSampler(parts, len(self._questions)).rollout(self._questions, 0)
        seconds = perf_counter() - started
        assert all(len(tree.leaves) == GROUP for tree in trees), "every chain must come back"
        if is_hanging:
            self.num_calls, self.num_hangs = self.num_calls + tool.num_calls, self.num_hangs + tool.num_hangs
        return seconds
