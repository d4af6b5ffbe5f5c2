"""Groups of rewards on branched trees, for tests of credit."""

from random import Random

import torch

from aepo_lightning.contracts.objective import RewardGroup
from tests.support.branched import grow
from tests.support.training import policy_turn, tool_turn


def group_of(tree, weights=None):
    """The group of a tree; weights 1 unless given."""
    rewards = torch.tensor([leaf.reward.reward for leaf in tree.leaves], dtype=torch.float64)
    weights = torch.ones(len(rewards)) if weights is None else torch.tensor(weights)
    return RewardGroup(tree=tree, leaves=tree.leaves, rewards=rewards, weights=weights.double())


def random_group(seed, mode="uniform", num_roots=3):
    """A tree of random turns, results from a small set, branches and rewards, with the weights of a mode."""
    random = Random(seed)

    def tokens():
        return [random.randrange(5, 9) for _ in range(random.randint(1, 3))]

    def chain(depth):
        found = [policy_turn(*tokens())]
        if depth == 0 or random.random() < 0.3:
            return [*found, random.random()]
        found.append(tool_turn(random.randrange(9, 11)))
        if random.random() < 0.5:
            return [*found, [chain(depth - 1) for _ in range(random.randint(2, 3))]]
        return [*found, *chain(depth - 1)]

    tree = grow([chain(3) for _ in range(num_roots)])
    raw = tree.leaf_weights(mode)
    return group_of(tree, [weight * len(raw) / sum(raw) for weight in raw])


def by_path(tree, rows):
    """Branch path of each leaf -> its row."""
    return {leaf.seed_path: row for leaf, row in zip(tree.leaves, rows, strict=True)}
