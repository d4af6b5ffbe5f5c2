"""What branches did to a group: where they fell against where chance would put them, and what they were worth."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from aepo_lightning.contracts.tree import BranchDecision, Leaf, LeafOrigin, RolloutTree

NEAR_ALPHA = 0.05
"""A probability within this of its base, alpha, is hardly moved by entropy or penalty."""
NUM_BUSIEST = 3
"""Root chains whose share of the branches is the concentration."""
_BRANCH_PATH_LENGTH = 3
"""A branch's seed path is its trunk's, followed by "b", the turn and an index."""
_Chances: TypeAlias = NDArray[np.float64]


def expected_concentration(decisions: Sequence[BranchDecision]) -> float:
    """Return the branch concentration that chance would give: the same branches, at decisions in a random order.

    That is the expected share of the three busiest root chains if as many of the group's decisions as opened a branch
    were picked among all of them, each set with the same probability. Exact where each of them opened equally many.

    Args:
        decisions: All of one group.

    Returns:
        The expected share; 0.0 if no branch was opened.
    """
    per_root = Counter(decision.root for decision in decisions)
    num_branching = sum(decision.num_opened > 0 for decision in decisions)
    if not num_branching:
        return 0.0
    return _expected_most(list(per_root.values()), num_branching) / num_branching


def _expected_most(sizes: Sequence[int], num_drawn: int) -> float:
    """Return the expected sum of the largest three counts, when balls of some colours are drawn without replacement.

    The sum of the largest three counts is, over all t from 1 on, the number of colours with t or more balls, at most
    three. Drawing without replacement is drawing every ball by itself with one probability, given that as many are
    drawn: `chances[t - 1, count, drawn]` is the probability that `drawn` balls of the colours so far are, and leave
    `count` colours with t or more, capped at three.

    Args:
        sizes: Balls of each colour.
        num_drawn: Balls drawn, at most all.
    """
    if len(sizes) <= NUM_BUSIEST:
        return float(num_drawn)
    p = num_drawn / sum(sizes)
    chances = np.zeros((num_drawn, NUM_BUSIEST + 1, num_drawn + 1))
    chances[:, 0, 0] = 1.0
    for size in sizes:
        chances = _with_colour(chances, size, p)
    given = chances[:, :, -1]
    return float((given @ np.arange(NUM_BUSIEST + 1) / given.sum(1)).sum())


def _with_colour(chances: _Chances, size: int, p: float) -> _Chances:
    """Return the chances with one colour more, of `size` balls that are drawn with probability `p` each."""
    following, num_drawn = np.zeros_like(chances), chances.shape[2] - 1
    for own in range(min(size, num_drawn) + 1):
        moved = math.comb(size, own) * p**own * (1 - p) ** (size - own) * chances[:, :, : num_drawn + 1 - own]
        following[own:, :, own:] += moved[own:]  # fewer balls than t
        following[:own, 1:, own:] += moved[:own, :-1]
        following[:own, -1, own:] += moved[:own, -1]
    return following


def sibling_variances(tree: RolloutTree, scored: Sequence[tuple[Leaf, float]]) -> tuple[float, float]:
    """Return how far rewards differ below a branch point, and in the whole group.

    Args:
        tree: A finished tree.
        scored: Its leaves that count, each with its reward.

    Returns:
        The unbiased variance of the rewards of all leaves below a branch point, averaged over the branch points that
        have two or more; and the unbiased variance over the group. Zeros without such a branch point.
    """
    below: dict[int, list[float]] = defaultdict(list)
    for leaf, reward in scored:
        for segment in tree.path(leaf.segment_id):
            if segment.is_branch_point:
                below[segment.segment_id].append(reward)
    within = [_variance(rewards) for rewards in below.values() if len(rewards) > 1]
    if not within:
        return 0.0, 0.0
    return statistics.fmean(within), _variance([reward for _, reward in scored])


def _variance(rewards: Sequence[float]) -> float:
    """Return the unbiased variance; that of equal rewards, which are the most late in a run, is known."""
    return 0.0 if min(rewards) == max(rewards) else statistics.variance(rewards)


def branch_reward_lift(tree: RolloutTree, scored: Sequence[tuple[Leaf, float]]) -> tuple[float, int]:
    """Return how much more branches earned than chance would give, in all, and how many of them have a reward.

    A branch at some decision earns on average what the chain that took the decision earns, since both go on from the
    same tokens. So branches at random decisions would earn the mean reward of these chains, over all decisions.

    Args:
        tree: A finished tree.
        scored: Its leaves that count, each with its reward.

    Returns:
        The sum of the differences over the branches of the group; zeros without a branch.
    """
    rewards = {leaf.seed_path: reward for leaf, reward in scored}
    at_decisions = [rewards[each.seed_path] for each in tree.decisions if each.seed_path in rewards]
    branches = [reward for leaf, reward in scored if leaf.origin is LeafOrigin.BRANCH]
    if not branches or not at_decisions:
        return 0.0, 0
    return sum(branches) - len(branches) * statistics.fmean(at_decisions), len(branches)


def decision_before(path: tuple[int | str, ...], turn: int) -> tuple[tuple[int | str, ...], int]:
    """Return chain and turn of the decision directly before that of a chain at a turn, if there was one.

    The chain of a branch begins with its trunk's decisions, up to the one that opened it.
    """
    opened_here = len(path) > _BRANCH_PATH_LENGTH and path[-2] == turn - 1
    return (path[:-_BRANCH_PATH_LENGTH] if opened_here else path, turn - 1)


def asked_in_a_row(decisions: Sequence[BranchDecision]) -> tuple[int, int]:
    """Return how many of the decisions directly after one that opened a branch asked for a branch, and their number.

    Args:
        decisions: All of one group.
    """
    opening = {(each.seed_path, each.turn) for each in decisions if each.num_opened}
    after = [each for each in decisions if decision_before(each.seed_path, each.turn) in opening]
    return sum(each.num_wanted > 0 for each in after), len(after)
