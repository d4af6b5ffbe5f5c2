"""Means of rollouts over all ranks."""

from aepo_lightning.distributed.collectives import all_names, all_reduce
from aepo_lightning.rollout import Tally


def reduce_tally(tally: Tally) -> dict[str, float]:
    """Return the means of a tally over all ranks. A rank that never observed a name adds nothing to its mean."""
    names = all_names(tally.totals)
    columns = (tally.totals, tally.weights)
    sums = all_reduce([column.get(name, 0.0) for column in columns for name in names])
    pairs = zip(names, sums[: len(names)], sums[len(names) :], strict=True)
    return {name: total / weight for name, total, weight in pairs if weight}
