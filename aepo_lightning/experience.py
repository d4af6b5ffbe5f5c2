"""From rollout trees to the data of optimiser steps: advantages, micro-batches within a token budget, old log-probs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from aepo_lightning.advantages import EntropyShaping, EntropyStatistics
from aepo_lightning.network import TokenScores
from aepo_lightning.ops.collectives import all_reduce, world_size
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.ops.tree_partition import Part, cut_tree, fill_bins
from aepo_lightning.protocols import AdvantageEstimator
from aepo_lightning.tree import RolloutTree, Trajectory
from aepo_lightning.types import Minibatch, TrajectoryBatch

Scorer = Callable[[TrajectoryBatch], TokenScores]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    trajectory: Trajectory
    group: int
    reward: float
    advantage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceBuilder:
    """Prepares what the trainer sees of one rollout iteration.

    Raises:
        ValueError: If a number is not positive.
    """

    advantage_estimator: AdvantageEstimator
    shaping: EntropyShaping | None = None
    """Entropy-aware advantage; None leaves one advantage per trajectory."""
    questions_per_step: int = 8
    """Questions per optimiser step, over all ranks."""
    max_tokens_per_micro_batch: int = 16384
    """Most tokens of one micro-batch, padding included. A longer trajectory gets a micro-batch of its own."""
    packing: Literal["padded", "flat", "tree"] = "padded"
    """How a micro-batch runs: as right-padded rows, as one row of whole trajectories without padding, or as one row
    that holds every prefix which trajectories of a question share once. The numbers are the same."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Whether the trainer scores the tokens before the first update, or the engine's log-probs are taken as is."""
    drop_zero_variance_groups: bool = False
    """Leave out questions whose trajectories all have the same reward; a step without any other keeps them."""
    pad_token_id: int = field(default=0)

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        for name in ("questions_per_step", "max_tokens_per_micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        if self.packing not in ("padded", "flat", "tree"):
            raise ValueError(f"`packing` must be 'padded', 'flat' or 'tree', but got {self.packing!r}.")

    def build(
        self, trees: Sequence[RolloutTree], score: Scorer, score_reference: Scorer | None = None
    ) -> list[Minibatch]:
        """Return one minibatch per optimiser step.

        Every rank passes its own questions, equally many, and gets equally many minibatches with equally many
        micro-batches. A group never leaves its rank.

        Args:
            trees: Finished trees of this rank.
            score: Log-probs and entropies by the trainer's weights, without gradient.
            score_reference: The same by the reference policy, if the objective wants a KL penalty.

        Raises:
            ValueError: If `questions_per_step` does not divide among the ranks.
        """
        num_ranks = world_size()
        if self.questions_per_step % num_ranks:
            raise ValueError(
                f"`questions_per_step` must be a multiple of the {num_ranks} ranks, but got {self.questions_per_step}."
            )
        own = self.questions_per_step // num_ranks
        minibatches = [self._minibatch(trees[i : i + own], i, score) for i in range(0, len(trees), own)]
        if score_reference is not None:
            for batch in (batch for minibatch in minibatches for batch in minibatch.micro_batches):
                batch.ref_logprobs = score_reference(batch).logprobs.cpu()
        return minibatches

    def _minibatch(self, trees: Sequence[RolloutTree], first_group: int, score: Scorer) -> Minibatch:
        rows = self._informative([row for i, tree in enumerate(trees) for row in self._rows(tree, first_group + i)])
        chunks = self._chunks(rows)
        num_chunks = int(all_reduce([len(chunks)], "max")[0])
        batches = [self._collate(chunk) for chunk in (*chunks, *[[]] * (num_chunks - len(chunks)))]
        self._annotate(batches, score)
        tokens = sum(int(batch.response_mask.sum()) for batch in batches)
        global_tokens, global_rows = all_reduce([tokens, len(rows)])
        return Minibatch(
            micro_batches=batches, global_num_tokens=int(global_tokens), global_num_sequences=int(global_rows)
        )

    def _rows(self, tree: RolloutTree, group: int) -> list[_Row]:
        rewards = tree.rewards
        advantages = self.advantage_estimator(torch.tensor(rewards, dtype=torch.float32)).tolist()
        return [
            _Row(trajectory=trajectory, group=group, reward=reward, advantage=advantage)
            for trajectory, reward, advantage in zip(tree.trajectories(), rewards, advantages, strict=True)
        ]

    def _informative(self, rows: list[_Row]) -> list[_Row]:
        if not self.drop_zero_variance_groups:
            return rows
        rewards: dict[int, set[float]] = {}
        for row in rows:
            rewards.setdefault(row.group, set()).add(row.reward)
        kept = [row for row in rows if len(rewards[row.group]) > 1]
        return kept if all_reduce([len(kept)])[0] else rows

    def _chunks(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        if self.packing == "padded":
            return self._padded_chunks(rows)
        parts = self._parts(rows)
        bins = fill_bins([part.num_tokens for part in parts], self.max_tokens_per_micro_batch)
        return [[rows[index] for each in found for index in parts[each].rows] for found in bins]

    def _parts(self, rows: Sequence[_Row]) -> list[Part]:
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
            for part in cut_tree([tokens[index] for index in members], self.max_tokens_per_micro_batch)
        ]

    def _padded_chunks(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Put rows of similar length together, so that little is padding."""
        chunks: list[list[_Row]] = []
        width = 0
        for row in sorted(rows, key=lambda row: -len(row.trajectory.token_ids)):
            if not chunks or width * (len(chunks[-1]) + 1) > self.max_tokens_per_micro_batch:
                chunks.append([])
                width = len(row.trajectory.token_ids)
            chunks[-1].append(row)
        return chunks

    def _collate(self, rows: Sequence[_Row]) -> TrajectoryBatch:
        paths = [row.trajectory for row in rows]
        width = max((len(path.token_ids) for path in paths), default=2)
        # An empty micro-batch is one row of padding, so that every rank runs the same number of passes.
        batch = TrajectoryBatch(
            input_ids=_padded([p.token_ids for p in paths] or [[]], width, self.pad_token_id, torch.long),
            lengths=torch.tensor([len(p.token_ids) for p in paths] or [0]),
            response_mask=_padded([p.is_sampled[1:] for p in paths] or [[]], width - 1, False, torch.bool),
            sampler_logprobs=_padded([p.logprobs[1:] for p in paths] or [[]], width - 1, 0.0, torch.float32),
            sampler_entropies=_padded([p.entropies[1:] for p in paths] or [[]], width - 1, 0.0, torch.float32),
            group_index=torch.tensor([row.group for row in rows] or [-1]),
            rewards=torch.tensor([row.reward for row in rows] or [0.0]),
            sequence_advantages=torch.tensor([row.advantage for row in rows] or [0.0]),
        )
        if self.packing != "padded":
            shares = self.packing == "tree"
            batch.packed = pack_rows(batch.input_ids, batch.lengths, batch.response_mask, shares_prefixes=shares)
        return batch

    def _annotate(self, batches: Sequence[TrajectoryBatch], score: Scorer) -> None:
        """Fill in old log-probs, old entropies and the advantage of every token."""
        for batch in batches:
            if self.old_logprobs == "recompute":
                scores = score(batch)
                batch.old_logprobs, batch.old_entropies = scores.logprobs.cpu(), scores.entropies.cpu()
            else:
                batch.old_logprobs, batch.old_entropies = batch.sampler_logprobs, batch.sampler_entropies
        for batch, statistics in zip(batches, self._entropy_statistics(batches), strict=True):
            if self.shaping is None:
                batch.advantages = batch.sequence_advantages[:, None] * batch.response_mask
            else:
                assert batch.old_entropies is not None, "filled in above"
                batch.advantages = self.shaping(
                    batch.sequence_advantages, batch.old_entropies, batch.response_mask, statistics
                )

    def _entropy_statistics(self, batches: Sequence[TrajectoryBatch]) -> list[list[EntropyStatistics]]:
        """Return, for every row of every batch, the entropy statistics of its group or of the whole step."""
        shaping = self.shaping
        if shaping is None:
            return [[] for _ in batches]
        rows = [
            EntropyStatistics.from_tokens(entropies[None], mask[None])
            for batch in batches
            if batch.old_entropies is not None
            for entropies, mask in zip(batch.old_entropies, batch.response_mask, strict=True)
        ]
        if shaping.scope == "minibatch":
            total = sum(rows, EntropyStatistics())
            count, first, second = all_reduce([total.count, total.total, total.total_squares])
            pooled = [EntropyStatistics(count=count, total=first, total_squares=second)] * len(rows)
        else:
            pooled = shaping.pool(rows, torch.cat([batch.group_index for batch in batches]))
        found = iter(pooled)
        return [[next(found) for _ in range(len(batch.lengths))] for batch in batches]


def _padded(rows: Sequence[Sequence[float | int]], width: int, fill: float | int, dtype: torch.dtype) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)
