"""From trajectories to micro-batches of an optimiser step: within a token budget, balanced, as many on every rank."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.tree import Trajectory
from aepo_lightning.distributed.collectives import all_reduce, world_size
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.ops.tree_partition import Part, cut_tree, fill_bins

BinT = TypeVar("BinT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trajectory and what it is worth."""

    trajectory: Trajectory
    group: int
    """Which question of the rollout iteration it belongs to."""
    reward: float
    advantage: float
    token_advantages: list[float] | None = None
    """One per token, where those of the trajectory differ."""
    weight: float = 1.0
    """How much the trajectory counts in the loss."""

    @property
    def num_tokens(self) -> int:
        """Length of the trajectory, prompt included."""
        return len(self.trajectory.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batcher:
    """Splits the trajectories of an optimiser step into micro-batches."""

    max_tokens: int
    """Most tokens of one micro-batch, padding included. A longer trajectory gets a micro-batch of its own."""
    packing: Literal["padded", "flat", "tree"] = "padded"
    pad_token_id: int = 0
    temperature: float = 1.0
    """Of the trajectories."""

    def micro_batches(self, rows: Sequence[Row]) -> list[TrajectoryBatch]:
        """Return micro-batches that hold every row once, the most expensive first. Collective.

        Their number is what the rank with the most tokens needs. Each rank spreads its own tokens over as many, so that
        its largest micro-batch is as small as that number allows; one that has nothing left gets empty ones at the end.

        Args:
            rows: Of this rank, possibly none.
        """
        fill, costs = self._filling(rows)
        num_bins = int(all_reduce([len(fill(self.max_tokens))], "max")[0])
        found = balanced_bins(fill, num_bins, self.max_tokens, sum(costs))
        batches = [self.collate([rows[index] for index in each]) for each in found]
        # Ranks meet in every micro-batch, so those of similar cost run at the same time.
        batches.sort(key=lambda batch: -_tokens_run(batch)[0])
        return batches + [self.collate([]) for _ in range(num_bins - len(batches))]

    def _filling(self, rows: Sequence[Row]) -> tuple[Callable[[int], list[list[int]]], list[int]]:
        """Return what puts row indices into bins of a given budget, and the costs that no bins can be below."""
        if self.packing == "padded":
            lengths = [row.num_tokens for row in rows]
            return (lambda budget: fill_padded(lengths, budget)), lengths
        parts = self._parts(rows)
        sizes = [part.num_tokens for part in parts]

        def fill(budget: int) -> list[list[int]]:
            return [[index for each in found for index in parts[each].rows] for found in fill_bins(sizes, budget)]

        return fill, sizes

    def _parts(self, rows: Sequence[Row]) -> list[Part]:
        """Return which rows stay together: each alone, or as much of a group's tree as fits."""
        tokens = [row.trajectory.token_ids for row in rows]
        if self.packing == "flat":
            return [Part(rows=(index,), num_tokens=len(ids)) for index, ids in enumerate(tokens)]
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.group, []).append(index)
        return [
            Part(rows=tuple(members[index] for index in part.rows), num_tokens=part.num_tokens)
            for members in groups.values()
            for part in cut_tree([tokens[index] for index in members], self.max_tokens)
        ]

    def collate(self, rows: Sequence[Row]) -> TrajectoryBatch:
        """Return rows as one micro-batch; without rows, as one row of padding, so that there is something to run."""
        paths = [row.trajectory for row in rows]
        width = max((row.num_tokens for row in rows), default=2)
        batch = TrajectoryBatch(
            input_ids=_padded([p.token_ids for p in paths] or [[]], width, self.pad_token_id, torch.long),
            lengths=torch.tensor([row.num_tokens for row in rows] or [0]),
            response_mask=_padded([p.is_sampled[1:] for p in paths] or [[]], width - 1, False, torch.bool),
            sampler_logprobs=_padded([p.logprobs[1:] for p in paths] or [[]], width - 1, 0.0, torch.float32),
            sampler_entropies=_padded([p.entropies[1:] for p in paths] or [[]], width - 1, 0.0, torch.float32),
            group_index=torch.tensor([row.group for row in rows] or [-1]),
            rewards=torch.tensor([row.reward for row in rows] or [0.0]),
            sequence_advantages=torch.tensor([row.advantage for row in rows] or [0.0]),
            token_advantages=_token_advantages(rows, width),
            weights=None if all(row.weight == 1 for row in rows) else torch.tensor([row.weight for row in rows]),
            temperature=self.temperature,
        )
        if self.packing != "padded":
            shares = self.packing == "tree"
            batch.packed = pack_rows(batch.input_ids, batch.lengths, batch.response_mask, shares_prefixes=shares)
        return batch


def balanced_bins(fill: Callable[[int], list[BinT]], num_bins: int, budget: int, total: int) -> list[BinT]:
    """Return what `fill` gives for the smallest budget at which it needs no more than `num_bins` bins.

    Args:
        fill: Puts the same items into bins of a budget; at `budget` itself, into `num_bins` at most.
        num_bins: How many bins there may be.
        budget: Largest budget.
        total: A total that the bins cannot be below, at which the search starts.
    """
    best = fill(budget)
    low, high = max(1, -(-total // max(1, num_bins))), budget
    while low < high:
        middle = (low + high) // 2
        found = fill(middle)
        if len(found) <= num_bins:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def describe_batches(minibatches: Iterable[Minibatch]) -> dict[str, float]:
    """Return how well the micro-batches of some optimiser steps are filled and balanced. Collective.

    Returns:
        `num_tokens_run` (by a forward pass over each, all ranks, padding included), `padding_share` (tokens of padding
        over tokens run, all ranks), `micro_batches_per_step` (of one rank, empty ones included), `token_imbalance`
        (tokens run by the busiest rank over the mean of the ranks, averaged over the steps; 1 is even).
    """
    steps = [[_tokens_run(batch) for batch in minibatch.micro_batches] for minibatch in minibatches]
    run = [float(sum(total for total, _ in step)) for step in steps]
    padding = sum(total - used for step in steps for total, used in step)
    *sums, all_padding = all_reduce([*run, padding])
    busiest = all_reduce(run, "max")
    shares = [most * world_size() / total for most, total in zip(busiest, sums, strict=True)]
    return {
        "num_tokens_run": sum(sums),
        "padding_share": all_padding / sum(sums),
        "micro_batches_per_step": sum(map(len, steps)) / len(steps),
        "token_imbalance": sum(shares) / len(shares),
    }


def _tokens_run(batch: TrajectoryBatch) -> tuple[int, int]:
    """Return the tokens that a forward pass computes, and how many of them are of a trajectory."""
    if batch.packed is None:
        return batch.input_ids.numel(), int(batch.lengths.sum())
    total = len(batch.packed.input_ids)
    return total, total if bool(batch.lengths.any()) else 0


def fill_padded(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put rows of similar length together, so that little is padding."""
    bins: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not bins or width * (len(bins[-1]) + 1) > budget:
            bins.append([])
            width = lengths[index]
        bins[-1].append(index)
    return bins


def _token_advantages(rows: Sequence[Row], width: int) -> Tensor | None:
    """Return the advantage of each predicted token; None if each trajectory has one for all of its tokens."""
    if all(row.token_advantages is None for row in rows):
        return None
    found = [row.token_advantages or [row.advantage] * row.num_tokens for row in rows]
    return _padded([advantages[1:] for advantages in found], width - 1, 0.0, torch.float32)


def _padded(rows: Sequence[Sequence[float | int]], width: int, fill: float | int, dtype: torch.dtype) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)
