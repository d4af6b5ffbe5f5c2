"""Our sampler against the same sampler in lock-step: same engine, questions, budgets and seeds.

    python -m benchmarks.rollout [--policy FOLDER] [--thought 10] [--questions 64] [--at-once 32]

The quickstart policy after its cold start rolls out the quickstart's questions as AEPO does (pre-monitoring, branches,
k = 8). Both sides have at most `--at-once` questions in flight: ours starts the next question when one is finished,
lock-step works through one batch of so many after the other, as the released code does. Tools answer at once, or
after a time drawn from a log-normal distribution (median 0.3 s, 99 % below 8 s, cut at 30 s) by question, chain and
call, so that both sides wait the same for the same call.

Turns of the quickstart policy are three to six tokens long. With `--thought 10`, it is cold-started on demonstrations
in which every turn begins with a thought of random length (geometric, 10 tokens on average), as turns of a policy that
reasons do.
"""

import argparse
import asyncio
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any

import torch

from aepo_lightning.app.build import build
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import Tool, ToolContext, ToolSpec
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.rollout import RolloutParts, RolloutSampler
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from benchmarks.support.common import describe_machine, print_result
from benchmarks.support.lockstep import Barrier, LockStepEngine, LockStepTools, MeteredEngine
from benchmarks.support.policies import quickstart_config, quickstart_parts, quickstart_policy

MEDIAN_S, P99_S, LONGEST_S = 0.3, 8.0, 30.0
SIGMA = math.log(P99_S / MEDIAN_S) / statistics.NormalDist().inv_cdf(0.99)
MAX_RESPONSE_TOKENS = 384
THOUGHTFUL_COLD_START = ("coldstart.num_steps=300", "coldstart.batch_size=16")
"""Enough for the tags and the lengths of thoughts; nobody asks here whether the answers are right."""
GOALS = {"slow": 2.0, "none": 1.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowTool:
    """A tool whose answers come late."""

    tool: Tool

    @property
    def spec(self) -> ToolSpec:
        """What the tool says of itself."""
        return self.tool.spec

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Answer after the time that belongs to this call."""
        random = Random(f"{context.question.question_id}/{context.seed_path}/{context.call_index}")
        await asyncio.sleep(min(LONGEST_S, random.lognormvariate(math.log(MEDIAN_S), SIGMA)))
        return await self.tool(arguments, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What both sides share."""

    parts: dict[str, RolloutParts]
    """By latency of the tools: `slow` or `none`."""
    engine: MeteredEngine
    policy: PolicySource
    questions: Sequence[Question]
    at_once: int

    def run(self, side: str, latency: str, seed: int) -> tuple[dict[str, float], list[RolloutTree]]:
        """Roll all questions out on an engine with an empty prefix cache, and measure."""
        self.engine.load_weights(self.policy.build_model().named_parameters(), seed)
        start, cpu = perf_counter(), process_time()
        trees = self._lock_step(latency, seed) if side == "lock-step" else self._ours(latency, seed)
        wall = perf_counter() - start
        figures = {
            "wall_s": wall,
            "cpu_s": process_time() - cpu,
            "tokens_per_s": self.engine.num_tokens / wall,
            "engine_idle_share": 1 - self.engine.busy_s / wall,
            "tokens": float(self.engine.num_tokens),
        }
        return figures, trees

    def _ours(self, latency: str, seed: int) -> list[RolloutTree]:
        return RolloutSampler(self.parts[latency], self.at_once).rollout(self.questions, seed)

    def _lock_step(self, latency: str, seed: int) -> list[RolloutTree]:
        parts, barrier = self.parts[latency], Barrier()
        tools, engine = LockStepTools(parts.tools, barrier), LockStepEngine(parts.engine, barrier)
        names = ("reward", "chat_format", "allocator", "branch_policy", "settings")
        rounds = RolloutParts(engine=engine, tools=tools, **{name: getattr(parts, name) for name in names})
        batches = [self.questions[i : i + self.at_once] for i in range(0, len(self.questions), self.at_once)]
        return [tree for batch in batches for tree in RolloutSampler(rounds, self.at_once).rollout(batch, seed)]


def prepare(args: argparse.Namespace, scratch: Path) -> Contest:
    """Make policy, engine, tools and questions."""
    overrides = [
        f"algorithm.budget={args.budget}",
        f"rollout.sampling.max_response_tokens={MAX_RESPONSE_TOKENS}",
    ]
    cfg = quickstart_config(*overrides, *(THOUGHTFUL_COLD_START if args.thought else ()))
    policy = quickstart_policy(cfg, args.policy, scratch, args.thought)
    engine = MeteredEngine(make_engine(args.engine, policy))
    chat_format = TagFormat(policy.tokenizer, ("search",))
    tools: dict[str, Tool] = {"slow": SlowTool(tool=DocumentSearch()), "none": DocumentSearch()}
    calls = args.at_once * args.budget
    runtimes = {name: ToolRuntime(tools=(t,), timeout_s=60.0, max_concurrent_calls=calls) for name, t in tools.items()}
    task = build(cfg.data.task)
    return Contest(
        parts={name: quickstart_parts(cfg, engine, tools, chat_format) for name, tools in runtimes.items()},
        engine=engine,
        policy=policy,
        questions=[task.question("train", index) for index in range(args.questions)],
        at_once=args.at_once,
    )


def make_engine(kind: str, policy: PolicySource) -> Engine:
    """Make the engine of both sides."""
    if kind == "transformers":
        return TransformersEngine(policy, max_num_seqs=512, max_model_len=512, max_prefill_tokens=16384)
    from aepo_lightning.engines.vllm.engine import VLLMEngine

    return VLLMEngine(policy, max_model_len=512, max_num_seqs=512, dtype="float32")


def compare(contest: Contest, latency: str, repeats: int) -> dict[str, Any]:
    """Run both sides in turn and return medians and ratios."""
    found: dict[str, list[dict[str, float]]] = {"lock-step": [], "ours": []}
    same = 0.0
    for repeat in range(repeats):
        order = list(found) if repeat % 2 else list(found)[::-1]  # a drift of the machine hits both
        trees = {}
        for side in order:
            figures, trees[side] = contest.run(side, latency, repeat)
            found[side].append(figures)
            print(f"{latency:5s} {side:10s} " + "  ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
        same += same_leaves(trees["ours"], trees["lock-step"]) / repeats
    medians = {side: {k: statistics.median(run[k] for run in runs) for k in runs[0]} for side, runs in found.items()}
    pairs = list(zip(found["lock-step"], found["ours"], strict=True))
    return {
        **medians,
        "speedup": statistics.median(slow["wall_s"] / fast["wall_s"] for slow, fast in pairs),
        "speedup_cpu": statistics.median(slow["cpu_s"] / fast["cpu_s"] for slow, fast in pairs),
        "speedup_tokens_per_s": statistics.median(fast["tokens_per_s"] / slow["tokens_per_s"] for slow, fast in pairs),
        "same_trajectories_fraction": same,
    }


def same_leaves(ours: Sequence[RolloutTree], theirs: Sequence[RolloutTree]) -> float:
    """Return the share of our trajectories that lock-step has sampled as well, token by token."""
    total = found = 0
    for own, other in zip(ours, theirs, strict=True):
        known = {tuple(other.token_ids(leaf.segment_id)) for leaf in other.leaves}
        total += len(own.leaves)
        found += sum(tuple(own.token_ids(leaf.segment_id)) in known for leaf in own.leaves)
    return found / total


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="Hugging Face folder of a quickstart policy; default: make one")
    parser.add_argument("--thought", type=float, default=0.0, help="mean tokens of a thought before each call")
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--latencies", nargs="+", default=["none", "slow"], choices=["none", "slow"])
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        contest = prepare(args, Path(name))
        contest.run("ours", "none", 0)  # the first requests compile and allocate
        figures: dict[str, Any] = {latency: compare(contest, latency, args.repeats) for latency in args.latencies}
        contest.engine.close()
    figures["setting"] = {name: value for name, value in vars(args).items() if name != "policy"}
    goals = {f"speedup, {name} tools": (figures[name]["speedup"], ">=", GOALS[name]) for name in args.latencies}
    print_result("rollout", figures, goals)


if __name__ == "__main__":
    main()
