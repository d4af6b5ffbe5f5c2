"""What branching buys, and what its penalty changes: independent samples, ARPO and AEPO at equal budget k.

    python -m benchmarks.branching [--policy FOLDER] [--budget 16] [--only simulated|quickstart]

Two policies answer the same questions under each strategy, with the same seeds: the quickstart policy after its cold
start, and a simulated one whose uncertainty comes in bursts (`benchmarks.support.simulated.BurstProcess`). For each
strategy:

- concentration: share of a group's branches on its three root chains with the most branches
- distinct: clusters of trajectories in a group. Two trajectories of the quickstart are in one cluster if they made the
  same tool calls and gave the same answer; of the simulation, if they took the same actions
- reward: mean over trajectories; best: mean over groups of the best trajectory's
- tokens: generated for a group, each token once; reward per 1,000 generated tokens adds up all k rewards
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from aepo_lightning.app.build import build, build_tools
from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.budgets import PreMonitoring, RootShare
from aepo_lightning.chat_formats.tags import TagFormat
from aepo_lightning.contracts.branching import BranchPolicy, BudgetAllocator
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.rollout import RolloutParts, RolloutSampler, RolloutSettings, summarise_trees
from aepo_lightning.tools import DocumentSearch, ToolRuntime
from benchmarks.support.common import describe_machine, print_result
from benchmarks.support.policies import quickstart_config, quickstart_parts, quickstart_policy
from benchmarks.support.simulated import BurstEngine, BurstProcess, BurstReward

Decision = Literal["bernoulli", "threshold"]
COLUMNS = ("concentration", "distinct", "reward", "best", "tokens", "reward_per_1000_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How k trajectories are sampled."""

    allocator: BudgetAllocator
    branch_policy: BranchPolicy
    keep_probe: bool = True
    """Whether the probe, whose branch decisions come first, is one of the m global samples."""


Grow = Callable[[Strategy, int], list[RolloutTree]]


@dataclass(frozen=True, slots=True)
class Rule:
    """The configured rule of ARPO and AEPO, with another penalty or decision."""

    decision: Decision

    def __call__(self, penalty: float) -> EntropyBalanced:
        """Return the rule with `penalty`."""
        return EntropyBalanced(alpha=0.5, gamma=4.0, tau=0.5, penalty_per_step=penalty, decision=self.decision)


def strategies(decision: Decision) -> dict[str, Strategy]:
    """Return what is compared, by name."""
    rule = Rule(decision)
    half, monitored = RootShare(share=0.5), PreMonitoring(beta=10.0)
    return {
        "independent": Strategy(allocator=RootShare(), branch_policy=NeverBranch()),
        "ARPO": Strategy(allocator=half, branch_policy=rule(0.0)),
        "ARPO, penalty 0.05": Strategy(allocator=half, branch_policy=rule(0.05)),
        "ARPO, penalty 0.2": Strategy(allocator=half, branch_policy=rule(0.2)),
        "AEPO, no penalty": Strategy(allocator=monitored, branch_policy=rule(0.0)),
        "AEPO": Strategy(allocator=monitored, branch_policy=rule(0.05)),
        "AEPO, penalty 0.2": Strategy(allocator=monitored, branch_policy=rule(0.2)),
        "AEPO, probe discarded": Strategy(allocator=monitored, branch_policy=rule(0.05), keep_probe=False),
    }


def actions(tree: RolloutTree, leaf: Leaf) -> tuple[str, ...]:
    """Return what a trajectory did: its tool calls."""
    calls = (segment.tool_call for segment in tree.path(leaf.segment_id))
    return tuple(f"{call.tool}: {call.text}" for call in calls if call is not None)


def actions_and_answer(tree: RolloutTree, leaf: Leaf) -> tuple[str, ...]:
    """Return the tool calls of a trajectory and its answer."""
    assert leaf.reward is not None, "finished trees are scored"
    return (*actions(tree, leaf), leaf.reward.answer)


def measure(trees: Sequence[RolloutTree], cluster: Callable[[RolloutTree, Leaf], tuple[str, ...]]) -> dict[str, float]:
    """Return the figures of one strategy under one seed."""
    means = summarise_trees(trees).means()
    num_tokens = sum(tree.num_generated_tokens for tree in trees)
    bests = [max(tree.rewards) for tree in trees]
    return {
        "concentration": means.get("branch_concentration", 0.0),
        "expected_concentration": means.get("expected_branch_concentration", 0.0),
        "branch_rate": means.get("branch_rate", 0.0),
        "near_alpha_fraction": means.get("near_alpha_fraction", 0.0),
        "sibling_reward_spread": means.get("sibling_reward_spread", 0.0),
        "distinct": statistics.mean(len({cluster(tree, leaf) for leaf in tree.leaves}) for tree in trees),
        "reward": means["reward"],
        "best": statistics.mean(bests),
        "correct_fraction": means["correct_fraction"],
        "tokens": num_tokens / len(trees),
        "reward_per_1000_tokens": 1000 * sum(sum(tree.rewards) for tree in trees) / num_tokens,
        "global_budget": means["global_budget"],
        "branches": means["num_branches"],
        "branch_depth": statistics.mean([depth for tree in trees for depth in tree.branch_depths] or [0.0]),
        "penalised_fraction": means.get("penalised_fraction", 0.0),
        "consecutive_high_entropy_fraction": means.get("consecutive_high_entropy_fraction", 0.0),
        "branch_reward": means.get("branch_reward", 0.0),
        "trunk_reward": means["trunk_reward"],
    }


def compare(
    grow: Grow,
    cluster: Callable[[RolloutTree, Leaf], tuple[str, ...]],
    seeds: Sequence[int],
    decisions: Sequence[Decision],
) -> dict[str, Any]:
    """Measure every strategy under every seed; return means and standard deviations over seeds."""
    found: dict[str, Any] = {}
    for decision in decisions:
        print(f"\n{decision:24s}" + "".join(f"{name:>23s}" for name in COLUMNS))
        for name, strategy in strategies(decision).items():
            runs = [measure(grow(strategy, seed), cluster) for seed in seeds]
            means = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
            spreads = {f"{key}_sd": statistics.pstdev(run[key] for run in runs) for key in COLUMNS}
            found[f"{decision}: {name}"] = means | spreads
            print_row(name, found[f"{decision}: {name}"])
    return found


def print_row(name: str, figures: Mapping[str, float]) -> None:
    """Print one strategy as a line of the table."""
    cells = (f"{figures[column]:.3f}+-{figures[f'{column}_sd']:.3f}" for column in COLUMNS)
    print(f"{name:24s}" + "".join(f"{cell:>23s}" for cell in cells), flush=True)


def simulated(budget: int, num_questions: int) -> Grow:
    """Return how the simulated policy grows trees."""
    process = BurstProcess()
    engine = BurstEngine(process, num_questions)
    questions = [engine.question(index) for index in range(num_questions)]
    tools = ToolRuntime(tools=(DocumentSearch(),))

    def grow(strategy: Strategy, seed: int) -> list[RolloutTree]:
        parts = RolloutParts(
            engine=engine,
            tools=tools,
            reward=BurstReward(process),
            chat_format=TagFormat(engine.tokenizer, ("search",)),
            allocator=strategy.allocator,
            branch_policy=strategy.branch_policy,
            settings=RolloutSettings(budget=budget, max_tool_calls=process.num_calls, keep_probe=strategy.keep_probe),
        )
        return RolloutSampler(parts).rollout(questions, seed)

    return grow


def quickstart(policy_folder: str | None, budget: int, num_questions: int, scratch: Path) -> Grow:
    """Return how the quickstart policy grows trees."""
    cfg = quickstart_config(f"algorithm.budget={budget}")
    policy = quickstart_policy(cfg, policy_folder, scratch)
    engine = TransformersEngine(policy, max_num_seqs=512, max_model_len=512, max_prefill_tokens=16384)
    chat_format = TagFormat(policy.tokenizer, ("search",))
    tools = build_tools(cfg.tools)
    task = build(cfg.data.task)
    questions: list[Question] = [task.question("val", index) for index in range(num_questions)]

    def grow(strategy: Strategy, seed: int) -> list[RolloutTree]:
        parts = quickstart_parts(cfg, engine, tools, chat_format)
        parts = replace(
            parts,
            allocator=strategy.allocator,
            branch_policy=strategy.branch_policy,
            settings=replace(parts.settings, keep_probe=strategy.keep_probe),
        )
        return RolloutSampler(parts).rollout(questions, seed)

    return grow


def main() -> None:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="Hugging Face folder of a quickstart policy; default: make one")
    parser.add_argument("--only", choices=["simulated", "quickstart"])
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--questions", type=int, default=48, help="of the quickstart")
    parser.add_argument("--simulated-questions", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    figures: dict[str, Any] = {"budget": args.budget}
    if args.only != "quickstart":
        grow = simulated(args.budget, args.simulated_questions)
        figures["simulated"] = compare(grow, actions, args.seeds, ("bernoulli", "threshold"))
    if args.only != "simulated":
        with tempfile.TemporaryDirectory() as name:
            grow = quickstart(args.policy, args.budget, args.questions, Path(name))
            figures["quickstart"] = compare(grow, actions_and_answer, args.seeds, ("bernoulli", "threshold"))
    print_result("branching", figures, {})


if __name__ == "__main__":
    main()
