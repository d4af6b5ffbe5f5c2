"""Credit from the tree: what the trajectories below a turn are worth."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.objective import RewardGroup
from aepo_lightning.contracts.tree import Segment
from aepo_lightning.errors import ConfigError

ROOT = -1
"""Stands for the prompt, which is above every first turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeValue:
    """Give each turn the value of its node: an average of the advantages of the trajectories below it.

    A turn that no other trajectory shares has the advantage of its own. At ratio 1, `leaves` has the same gradient as
    no credit at all, because the copies of a shared turn then add up to their mean; the two part where ratios are
    clipped.

    References:
        `leaves`: ARPO, arXiv:2507.19849, section 3.2, the hard advantage estimation. `children` and `entropy`: AT2PO,
        arXiv:2601.04767, turn-wise credit assignment, as in its released code (`child_mean`, `child_softmax`), which
        uses the value of a node as its advantage (`baseline="none"`) or the difference to its parent
        (`baseline="parent"`). Departure: that code scales leaves by the population deviation, here the estimator
        decides.
    """

    average: Literal["leaves", "children", "entropy"] = "leaves"
    """`leaves`: over the trajectories below, with their weights. `children`: over the turns that follow, whatever hangs
    below each. `entropy`: over these with weights softmax(mean -log p of their sampled tokens)."""
    baseline: Literal["none", "parent"] = "none"
    """`parent`: the value of the turn before is subtracted, of the prompt for a first turn."""

    def __post_init__(self) -> None:
        """Refuse unknown words."""
        if self.average not in ("leaves", "children", "entropy"):
            raise ConfigError(f"`average` must be 'leaves', 'children' or 'entropy', but got {self.average!r}.")
        if self.baseline not in ("none", "parent"):
            raise ConfigError(f"`baseline` must be 'none' or 'parent', but got {self.baseline!r}.")

    def __call__(self, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
        """Return one advantage for each turn of each trajectory.

        Args:
            group: Trajectories, their weights and their tree.
            advantages: Of the trajectories.
        """
        turns, given = group.turns, advantages.tolist()
        if self.average == "leaves":
            values = _over_leaves(turns, given, group.weights.tolist())
        else:
            values = self._over_children(turns, given)
        if self.baseline == "none":
            return [[values[turn.segment_id] for turn in path] for path in turns]
        ids = [[ROOT, *(turn.segment_id for turn in path)] for path in turns]
        return [[values[own] - values[above] for above, own in pairwise(path)] for path in ids]

    def _over_children(self, turns: Sequence[Sequence[Segment]], given: Sequence[float]) -> Mapping[int, float]:
        """Return the value of every node, from the leaves up; a trajectory that ends at a node is a child of it."""
        ends: dict[int, list[float]] = defaultdict(list)
        children: dict[int, dict[int, Segment]] = defaultdict(dict)
        for path, value in zip(turns, given, strict=True):
            ends[path[-1].segment_id if path else ROOT].append(value)
            for above, turn in zip([ROOT, *(turn.segment_id for turn in path)], path, strict=False):
                children[above][turn.segment_id] = turn
        values: dict[int, float] = {}
        for node in sorted({*ends, *children}, reverse=True):  # a segment has a higher number than its parent
            below = list(children[node].values())
            found = [*ends[node], *(values[turn.segment_id] for turn in below)]
            scores = [0.0] * len(ends[node]) + [self._score(turn) for turn in below]
            shares = [math.exp(score - max(scores)) for score in scores]
            values[node] = sum(share * value for share, value in zip(shares, found, strict=True)) / sum(shares)
        return values

    def _score(self, turn: Segment) -> float:
        if self.average == "children" or not turn.logprobs:
            return 0.0
        return -sum(turn.logprobs) / len(turn.logprobs)


def _over_leaves(
    turns: Sequence[Sequence[Segment]], given: Sequence[float], weights: Sequence[float]
) -> Mapping[int, float]:
    totals: dict[int, float] = defaultdict(float)
    counts: dict[int, float] = defaultdict(float)
    for path, value, weight in zip(turns, given, weights, strict=True):
        for node in [ROOT, *(turn.segment_id for turn in path)]:
            totals[node] += weight * value
            counts[node] += weight
    return {node: totals[node] / counts[node] if counts[node] else 0.0 for node in totals}
