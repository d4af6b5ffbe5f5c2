"""The advantage that leaves no bias on a tree: each reward against the root chains that it did not descend from."""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.objective import RewardGroup
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RootBaseline:
    """Subtract from each reward the mean value of the other global samples; every turn of a trajectory gets the same.

    The value of a root chain is the mean reward of its trajectories, by their weights. Top-ups are in no baseline,
    since whether there are any depends on what the other chains did. In the update they count as a root chain does, or
    not at all. Weights of a group are divided by their mean, which knows how many top-ups there were; advantages are
    multiplied by (root chains) / m, which takes that out again.

    With `leaf_weights=inverse_fan_out`, `branch_signal=prefix` and an m that no chain of the group decided, the
    expectation of weight * advantage * grad log pi, summed over the group, points along the gradient of the expected
    reward of the question (docs/unbiased_branching.md). It needs to see the tree, so it is a `Credit`; its
    baseline is its own, so it goes with `NoBaseline`.
    """

    needs_rewards: ClassVar[bool] = True
    """It starts from rewards, not from the advantages of an estimator."""

    top_ups: Literal["count", "leave_out"] = "count"
    """`count`: the step of a question is E[root chains] / m times its gradient, and nothing is wasted. `leave_out`: the
    advantage of top-ups is 0, and the step is the same multiple of the gradient for every question."""

    def __post_init__(self) -> None:
        """Refuse an unknown word."""
        if self.top_ups not in ("count", "leave_out"):
            raise ConfigError(f"`top_ups` must be 'count' or 'leave_out', but got {self.top_ups!r}.")

    def __call__(self, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
        """Return, for each trajectory, its advantage once for each of its policy segments.

        Args:
            group: Trajectories with rewards and weights, and their tree.
            advantages: Not looked at; the rewards themselves under `NoBaseline`.
        """
        del advantages
        num_global = group.tree.global_budget
        chains = [int(leaf.seed_path[1]) for leaf in group.leaves]
        rewards, values = group.rewards.tolist(), _values(group, chains)
        known = {chain: value for chain, value in values.items() if chain < num_global}
        scale = len(values) / len(known) if known else 0.0
        found = []
        for leaf, chain, reward in zip(group.leaves, chains, rewards, strict=True):
            others = [value for other, value in known.items() if other != chain]
            baseline = sum(others) / len(others) if others else 0.0
            is_out = chain >= num_global and self.top_ups == "leave_out"
            path = group.tree.path(leaf.segment_id)
            num_turns = sum(segment.source is SegmentSource.POLICY for segment in path)
            found.append([0.0 if is_out else scale * (reward - baseline)] * num_turns)
        return found


def _values(group: RewardGroup, chains: list[int]) -> dict[int, float]:
    """Return the mean reward of each root chain's trajectories, by their weights."""
    totals, weights = defaultdict[int, float](float), defaultdict[int, float](float)
    for chain, reward, weight in zip(chains, group.rewards.tolist(), group.weights.tolist(), strict=True):
        totals[chain] += weight * reward
        weights[chain] += weight
    return {chain: totals[chain] / weights[chain] for chain in totals}
