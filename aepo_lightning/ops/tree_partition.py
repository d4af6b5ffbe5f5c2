"""Which trajectories are packed together, within a token budget.

The cost of a set of trajectories is the number of tokens of their prefix tree. A tree above the budget is cut between
trajectories that are neighbours in its walk, and each part repeats the prefixes that it shares with other parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aepo_lightning.ops.tree_packing import preorder, shared_lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Trajectories that are packed together."""

    rows: tuple[int, ...]
    """Indices into the list that was cut."""
    num_tokens: int
    """Tokens of their prefix tree."""


def cut_tree(rows: Sequence[list[int]], budget: int) -> list[Part]:
    """Cut the prefix tree of trajectories into parts within a budget, repeating as few tokens as possible.

    Of all ways to cut the walk through the tree into runs, this takes the one with the fewest tokens and, among these,
    with the fewest parts. The tokens of the parts are at least those of the tree and at most those of the
    trajectories one by one.

    Args:
        rows: Tokens of each trajectory.
        budget: Most tokens of a part. A longer trajectory is a part of its own.

    Returns:
        Parts that hold every trajectory once.
    """
    order = preorder(rows)
    lengths = [len(rows[index]) for index in order]
    shared = shared_lengths([torch.tensor(rows[index], dtype=torch.long) for index in order])
    # best[n]: tokens and parts of the first n trajectories of the walk, where the last part starts, and its tokens.
    best: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]
    for stop in range(1, len(order) + 1):
        found, added = [], 0
        for start in range(stop - 1, -1, -1):
            size = lengths[start] + added
            if size > budget and start < stop - 1:
                break
            tokens, parts, *_ = best[start]
            found.append((tokens + size, parts + 1, start, size))
            added += lengths[start] - shared[start]
        best.append(min(found))
    cuts, stop = [], len(order)
    while stop:
        start, size = best[stop][2:]
        cuts.append(Part(rows=tuple(order[start:stop]), num_tokens=size))
        stop = start
    return cuts[::-1]


def fill_bins(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Put items into as few bins as first-fit decreasing finds.

    Args:
        sizes: Tokens of each item.
        budget: Most tokens of a bin. A larger item gets a bin of its own.

    Returns:
        Indices of the items of each bin, largest first.
    """
    bins: list[list[int]] = []
    totals: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fitting = next((n for n, total in enumerate(totals) if total + sizes[index] <= budget), None)
        if fitting is None:
            bins.append([])
            totals.append(0)
            fitting = -1
        bins[fitting].append(index)
        totals[fitting] += sizes[index]
    return bins
