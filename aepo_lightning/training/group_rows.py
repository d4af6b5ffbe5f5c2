"""From the tree of a question to its rows: weights, advantages of trajectories, credit of turns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aepo_lightning.advantages import OverlongPenalty
from aepo_lightning.contracts.advantage import assign_credit, estimate_advantages
from aepo_lightning.contracts.objective import AdvantageEstimator, Credit, RewardGroup
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import LeafWeighting, RolloutTree
from aepo_lightning.training.batching import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRows:
    """Turns the trajectories of a question that have a reward into rows."""

    advantage_estimator: AdvantageEstimator
    leaf_weights: LeafWeighting = "uniform"
    credit: Credit | None = None
    """None: every token of a trajectory has its advantage."""
    overlong: OverlongPenalty | None = None
    """Changes what estimator and credit see of long trajectories; with its lengths known."""

    def __call__(self, tree: RolloutTree, group: int) -> list[Row]:
        """Return the rows of a finished tree.

        Args:
            tree: Finished. Leaves without a reward are left out; if none has one, there are no rows.
            group: Which question of the iteration it is.
        """
        if not tree.scored_leaves:
            return []
        found = self.group_of(tree)
        advantages, turns = self._advantages(found)
        rewards = torch.tensor([reward for _, reward in tree.scored_leaves], dtype=torch.float32)
        values = zip(found.leaves, rewards.tolist(), found.weights.tolist(), advantages.tolist(), strict=True)
        return [
            Row(
                trajectory=tree.trajectory(leaf),
                group=group,
                reward=reward,
                advantage=advantage,
                token_advantages=None if turns is None else _by_token(tree, leaf.segment_id, turns[index]),
                weight=weight,
            )
            for index, (leaf, reward, weight, advantage) in enumerate(values)
            if self.overlong is None or not self.overlong.is_masked(leaf)
        ]

    def _advantages(self, group: RewardGroup) -> tuple[Tensor, list[list[float]] | None]:
        """Return the advantages of trajectories, and of their turns if there is credit."""
        is_weighted = self.leaf_weights != "uniform"
        advantages = estimate_advantages(self.advantage_estimator, group, is_weighted=is_weighted)
        return advantages, None if self.credit is None else assign_credit(self.credit, group, advantages)

    def group_of(self, tree: RolloutTree) -> RewardGroup:
        """Return the trajectories of a tree that have a reward, with their weights and any penalty for their length."""
        raw = dict(zip(map(id, tree.leaves), tree.leaf_weights(self.leaf_weights), strict=True))
        scored = tree.scored_leaves
        weights = torch.tensor([raw[id(leaf)] for leaf, _ in scored], dtype=torch.float64)
        if bool(weights.any()):
            weights = weights / weights.mean()
        rewards = [reward + (0.0 if self.overlong is None else self.overlong.of(tree, leaf)) for leaf, reward in scored]
        return RewardGroup(
            tree=tree,
            leaves=[leaf for leaf, _ in scored],
            rewards=torch.tensor(rewards, dtype=torch.float32),
            weights=weights.float(),
        )


def _by_token(tree: RolloutTree, segment_id: int, turns: list[float]) -> list[float]:
    """Return the advantage of each token of a path, 0 where the policy did not sample it."""
    left = iter(turns)
    path = [(len(each.token_ids), each.source is SegmentSource.POLICY) for each in tree.path(segment_id)]
    return [value for length, is_own in path for value in [next(left) if is_own else 0.0] * length]
