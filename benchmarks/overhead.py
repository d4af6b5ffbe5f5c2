"""What the sampler itself costs: thousands of chains on an engine that computes nothing.

    python -m benchmarks.overhead [--chains 10 100 1000 10000] [--turn-tokens 8 128] [--profile]

Every chain makes four tool calls and answers; no two tool results are equal. The other side of each measurement does
without a sampler what no rollout can do without: one task per chain that awaits the engine, decodes the turn, awaits
the tool and encodes its result, with the same numbers of tokens, each call straight to the tokenizer's own library.
What the sampler adds, in processor time per turn, is its overhead. Every setting runs in a process of its own; its
memory is the growth of the resident set from before the first question to the peak, finished trees included.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter, process_time
from typing import Any

from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.budgets import PreMonitoring, RootShare
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolContext
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from benchmarks.support.common import describe_machine, print_result
from benchmarks.support.simulated import ScriptedEngine, no_reward, place_question, place_tokenizer

GROUP = 10
"""k: chains per question."""
NUM_CALLS = 4
GOAL_MS = 0.3


class Setting:
    """One measurement: so many chains, turns of so many tokens, one algorithm."""

    def __init__(self, num_chains: int, turn_length: int, algorithm: str) -> None:
        """Build engine, tools, questions and sampler."""
        tokenizer = place_tokenizer()
        self.questions = [place_question(index, turn_length) for index in range(num_chains // GROUP)]
        self.engine = ScriptedEngine(tokenizer, NUM_CALLS, turn_length)
        self.tools = ToolRuntime(tools=(DocumentSearch(),), max_result_chars=1 << 20, max_concurrent_calls=num_chains)
        self.chat_format = TagFormat(tokenizer, ("search",))
        is_aepo = algorithm == "aepo"
        self.parts = RolloutParts(
            engine=self.engine,
            tools=self.tools,
            reward=no_reward,
            chat_format=self.chat_format,
            allocator=PreMonitoring(beta=10.0) if is_aepo else RootShare(),
            branch_policy=EntropyBalanced(gamma=4.0) if is_aepo else NeverBranch(),
            settings=RolloutSettings(budget=GROUP, max_response_tokens=1 << 19),
        )

    def forget(self) -> None:
        """Start with an empty memory of encoded texts, which would spare the sampler work at a repetition."""
        self.chat_format = TagFormat(self.engine.tokenizer, ("search",))
        self.parts = replace(self.parts, chat_format=self.chat_format)

    def with_sampler(self, seed: int) -> int:
        """Grow all trees; return the number of turns."""
        before = self.engine.num_generations
        RolloutSampler(self.parts, max_concurrent_questions=len(self.questions)).rollout(self.questions, seed)
        return self.engine.num_generations - before

    def without_sampler(self, seed: int) -> int:
        """Make the same generations and tool calls from bare tasks; return the number of turns."""
        before = self.engine.num_generations
        asyncio.run(self._bare_chains(seed))
        return self.engine.num_generations - before

    async def _bare_chains(self, seed: int) -> None:
        prompt = self.chat_format.encode_prompt(self.questions[0].messages)
        turn = self.chat_format.encode_text("go " * self.engine.turn_length)
        result = self.chat_format.encode_result("go " * self.engine.turn_length)
        prompts = [prompt + (turn + result) * done for done in range(NUM_CALLS + 1)]
        settings = {"max_tokens": 1 << 19, "stop": self.chat_format.stop, "num_probe_tokens": 20}
        params = [SamplingParams(seed=seed + index, **settings) for index in range(64)]  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as group:
            for question in self.questions:
                for index in range(GROUP):
                    group.create_task(self._bare_chain(question, prompts, params[index]))

    async def _bare_chain(self, question: Question, prompts: Sequence[list[int]], params: SamplingParams) -> None:
        call = ToolCall(tool="search", text="e1")
        library = self.engine.tokenizer.backend_tokenizer
        for done, prompt in enumerate(prompts):
            generation = await self.engine.generate(prompt, params, lambda _: None)
            library.decode(generation.token_ids)
            if done < NUM_CALLS:
                result = await self.tools.call(call, ToolContext(question=question, call_index=done))
                library.encode(f" <result>\n{result.text}\n</result>", add_special_tokens=False)


def peak_bytes() -> int:
    """Return the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_here(num_chains: int, turn_length: int, algorithm: str) -> dict[str, float]:
    """Measure one setting in this process: memory in the first run, then times of both sides in turn."""
    setting = Setting(num_chains, turn_length, algorithm)
    Setting(GROUP, turn_length, algorithm).with_sampler(0)  # what is built once is no chain's memory
    before = peak_bytes()
    num_turns = setting.with_sampler(0)
    growth, at_once = peak_bytes() - before, setting.engine.most_running
    repeats = max(3, min(100, 6_000 // num_chains))
    own, bare = [], []
    for seed in range(repeats):
        setting.forget()
        own.append(_time(lambda seed=seed: setting.with_sampler(seed)))
        bare.append(_time(lambda seed=seed: setting.without_sampler(seed)))
    (cpu, wall), (bare_cpu, bare_wall) = _medians(own), _medians(bare)
    return {
        "overhead_ms_per_turn": 1e3 * (cpu - bare_cpu),
        "sampler_ms_per_turn": 1e3 * cpu,
        "bare_ms_per_turn": 1e3 * bare_cpu,
        "overhead_wall_ms_per_turn": 1e3 * (wall - bare_wall),
        "turns": num_turns,
        "most_generations_at_once": at_once,
        "memory_mib": growth / 2**20,
        "memory_kib_per_chain": growth / 2**10 / num_chains,
    }


def _time(work: Any) -> tuple[float, float]:
    cpu, wall = process_time(), perf_counter()
    turns = work()
    return (process_time() - cpu) / turns, (perf_counter() - wall) / turns


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(cpu for cpu, _ in pairs), statistics.median(wall for _, wall in pairs)


def measure(num_chains: int, turn_length: int, algorithm: str) -> dict[str, float]:
    """Measure one setting in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.overhead", "--one", str(num_chains), str(turn_length), algorithm]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def profile(num_chains: int, turn_length: int, algorithm: str) -> None:
    """Print where the time of one setting goes."""
    setting = Setting(num_chains, turn_length, algorithm)
    setting.with_sampler(0)
    profiler = cProfile.Profile()
    profiler.runcall(setting.with_sampler, 1)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--turn-tokens", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--algorithms", nargs="+", default=["independent", "aepo"], choices=["independent", "aepo"])
    parser.add_argument("--profile", action="store_true", help="print a profile of the first setting and stop")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_here(int(args.one[0]), int(args.one[1]), args.one[2])))
        return
    if args.profile:
        profile(args.chains[0], args.turn_tokens[0], args.algorithms[0])
        return
    print(describe_machine(), flush=True)
    figures: dict[str, dict[str, float]] = {}
    for turn_length in args.turn_tokens:
        for algorithm in args.algorithms:
            for num_chains in args.chains:
                found = measure(num_chains, turn_length, algorithm)
                figures[f"{algorithm}, {turn_length} tokens per turn, {num_chains} chains"] = found
                print_row(algorithm, turn_length, num_chains, found)
    worst = max(found["overhead_ms_per_turn"] for found in figures.values())
    print_result("overhead", figures, {"largest overhead per turn (ms)": (worst, "<=", GOAL_MS)})


def print_row(algorithm: str, turn_length: int, num_chains: int, found: dict[str, float]) -> None:
    """Print one setting as a line."""
    print(
        f"{algorithm:12s} {turn_length:4d} tokens/turn {num_chains:6d} chains   "
        f"overhead {found['overhead_ms_per_turn']:.3f} ms/turn "
        f"({found['sampler_ms_per_turn']:.3f} with, {found['bare_ms_per_turn']:.3f} without the sampler)   "
        f"{found['memory_mib']:7.1f} MiB, {found['memory_kib_per_chain']:.1f} KiB/chain   "
        f"at most {found['most_generations_at_once']:.0f} at once",
        flush=True,
    )


if __name__ == "__main__":
    main()
