"""Means of rollouts over all ranks."""

from collections.abc import Iterable, Mapping, Sequence

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.contracts.tool import ToolRunner
from aepo_lightning.contracts.tree import RolloutTree, TreeBatch
from aepo_lightning.distributed.collectives import all_names, all_reduce
from aepo_lightning.rollout import Tally, pass_rates, summarise_trees


def reduce_tally(tally: Tally) -> dict[str, float]:
    """Return the means of a tally over all ranks. A rank that never observed a name adds nothing to its mean."""
    names = all_names(tally.totals)
    columns = (tally.totals, tally.weights)
    sums = all_reduce([column.get(name, 0.0) for column in columns for name in names])
    pairs = zip(names, sums[: len(names)], sums[len(names) :], strict=True)
    return {name: total / weight for name, total, weight in pairs if weight}


def describe_evaluation(batches: Sequence[TreeBatch]) -> dict[str, float]:
    """Return pass@k and what evaluated trajectories look like, under the names that are logged. Collective.

    Args:
        batches: Of this rank: trees whose leaves are independent samples.
    """
    tally = summarise_trees([tree for batch in batches for tree in batch.trees])
    for tree, pass_at in ((tree, batch.pass_at) for batch in batches for tree in batch.trees):
        for name, value in pass_rates([tree], pass_at).items():
            tally.add(name, value)
    return prefixed("val", reduce_tally(tally))


def describe_iteration(
    tally: Tally, trees: Iterable[RolloutTree], seconds: Mapping[str, float], tools: ToolRunner
) -> dict[str, float]:
    """Return the figures of an iteration's rollouts over all ranks, under the names that are logged. Collective.

    Args:
        tally: Of this rank's trees.
        trees: This rank's trees.
        seconds: How long the parts of the iteration took; `rollout_s` among them.
        tools: What ran the calls. Its `metrics()`, if it has that, are this rank's.
    """
    values = prefixed("rollout", reduce_tally(tally)) | prefixed("time", seconds)
    values |= prefixed("tools", getattr(tools, "metrics", dict)())
    costs = [(tree.num_generated_tokens, tree.num_tool_calls) for tree in trees]
    num_tokens, num_calls = all_reduce([float(sum(cost[0] for cost in costs)), float(sum(cost[1] for cost in costs))])
    values["rollout/num_generated_tokens"], values["rollout/num_answered_calls"] = num_tokens, num_calls
    values["rollout/tokens_per_s"] = num_tokens / seconds["rollout_s"]
    return values


def describe_overlong(trees: Iterable[RolloutTree], overlong: OverlongPenalty | None) -> dict[str, float]:
    """Return what a penalty takes off the reward of a trajectory on average, under the name that is logged. Collective.

    Args:
        trees: Of this rank.
        overlong: With its lengths known; None takes nothing off, and is not logged.

    Returns:
        The mean over trajectories with a reward; nothing if there are none.
    """
    if overlong is None:
        return {}
    penalties = [overlong.of(tree, leaf) for tree in trees for leaf, _ in tree.scored_leaves]
    total, count = all_reduce([-sum(penalties), len(penalties)])
    return {"rollout/overlong_penalty": total / count} if count else {}


def prefixed(group: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return values under `group/name`."""
    return {f"{group}/{name}": value for name, value in values.items()}
