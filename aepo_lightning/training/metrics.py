"""Means of rollouts over all ranks."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.contracts.tree import RolloutTree, TreeBatch
from aepo_lightning.distributed.collectives import all_gather, all_names, all_reduce
from aepo_lightning.ops.masked import MAX_LOG_RATIO
from aepo_lightning.ops.percentiles import SortedSample, percentiles, sorted_sample
from aepo_lightning.rollout import RolloutParts, Tally, pass_rates, summarise_trees
from aepo_lightning.rollout.statistics import PERCENTILES, with_chance

_RATIO_PERCENTILES = {"importance_ratio_p{}": (1, 10, 90, 99)}


def reduce_tally(tally: Tally) -> dict[str, float]:
    """Return means and percentiles of a tally over all ranks. A rank that never observed a name adds nothing."""
    names = all_names(tally.totals)
    columns = (tally.totals, tally.weights)
    sums = all_reduce([column.get(name, 0.0) for column in columns for name in names])
    pairs = zip(names, sums[: len(names)], sums[len(names) :], strict=True)
    means = with_chance({name: total / weight for name, total, weight in pairs if weight})
    samples = {
        name: sorted_sample(torch.tensor(values, dtype=torch.float64))
        for name, values in tally.samples.items()
        if values
    }
    return means | gathered_percentiles(samples, PERCENTILES)


def gathered_percentiles(
    samples: Mapping[str, SortedSample], percents: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return percentiles over the samples of all ranks. Collective.

    Args:
        samples: Of this rank, under names with a place for the percentile.
        percents: Which ones, for each name that there may be.

    Returns:
        Each under its name; none of a name that no rank has a sample of.
    """
    found: dict[str, float] = {}
    gathered = all_gather(dict(samples))
    for name, chosen in percents.items():
        of_name = [own[name] for own in gathered if name in own and own[name].count]
        if of_name:
            values = percentiles(of_name, chosen)
            found |= {name.format(percent): value for percent, value in zip(chosen, values, strict=True)}
    return found


def ratio_percentiles(log_ratios: Sequence[Tensor]) -> dict[str, float]:
    """Return percentiles of the importance ratios of an optimiser step's tokens. Collective.

    Args:
        log_ratios: Of the response tokens of each micro-batch of this rank.
    """
    ratios = torch.cat(list(log_ratios)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return gathered_percentiles({name: sorted_sample(ratios) for name in _RATIO_PERCENTILES}, _RATIO_PERCENTILES)


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
    tally: Tally, trees: Iterable[RolloutTree], seconds: Mapping[str, float], parts: RolloutParts
) -> dict[str, float]:
    """Return the figures of an iteration's rollouts over all ranks, under the names that are logged. Collective.

    Args:
        tally: Of this rank's trees.
        trees: This rank's trees.
        seconds: How long the parts of the iteration took; `rollout_s` among them.
        parts: What the trees were grown with. The `metrics()` of its tools, if they have that, are this rank's.
    """
    values = prefixed("rollout", reduce_tally(tally)) | prefixed("time", seconds)
    values |= prefixed("tools", getattr(parts.tools, "metrics", dict)())
    costs = [(tree.num_generated_tokens, tree.num_tool_calls) for tree in trees]
    own = [float(sum(cost[0] for cost in costs)), float(sum(cost[1] for cost in costs)), *parts.clock.take()]
    num_tokens, num_calls, idle_s, total_s = all_reduce(own)
    if total_s:
        values["rollout/idle_fraction"] = idle_s / total_s
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
