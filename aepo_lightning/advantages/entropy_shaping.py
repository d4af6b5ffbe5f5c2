"""The entropy-aware advantage of AEPO: uncertain tokens are rewarded and punished more than certain ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aepo_lightning.advantages.entropy_statistics import EntropyStatistics
from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.masked import zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyShaping:
    """Multiply the advantage of each token by 1 + weight * z, with z the standardised entropy of the token.

    References:
        AEPO, arXiv:2510.14545, the entropy-aware advantage. The weight is that of the released code, which takes mean
        and standard deviation over a micro-batch of one GPU; here they do not depend on how the work is split.
    """

    weight: float = 0.2
    """The paper's a. 0 leaves every advantage as it is."""
    scope: Literal["group", "minibatch"] = "group"
    """Over which tokens entropies are standardised: those of the same question, or of the whole optimiser step."""
    guard: bool = True
    """Keep the factor from falling below 0, which would turn the sign of the advantage: z < -1 / weight."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"`weight` must be 0 (off) or positive, but got {self.weight}.")
        if self.scope not in ("group", "minibatch"):
            raise ConfigError(f"`scope` must be 'group' or 'minibatch', but got {self.scope!r}.")

    def pool(
        self, row_statistics: Sequence[EntropyStatistics], group_index: Int[Tensor, " batch"]
    ) -> list[EntropyStatistics]:
        """Merge the statistics of single trajectories over the scope.

        Args:
            row_statistics: One per trajectory, of every trajectory in the scope: all ranks, all micro-batches.
            group_index: The question of each trajectory.

        Returns:
            For each trajectory, in input order, the statistics of its whole scope.

        Raises:
            ValueError: If the two arguments differ in length.
        """
        keys = group_index.tolist() if self.scope == "group" else [0] * len(group_index)
        if len(row_statistics) != len(keys):
            raise ValueError(
                f"`row_statistics` must have one entry per trajectory, but got {len(row_statistics)} for {len(keys)}."
            )
        pooled = {key: EntropyStatistics() for key in keys}
        for key, statistics in zip(keys, row_statistics, strict=True):
            pooled[key] = pooled[key] + statistics
        return [pooled[key] for key in keys]

    def __call__(self, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
        """Return the shaped advantages of an optimiser step. Collective with the scope `minibatch`.

        Args:
            batches: All micro-batches of this rank, with `advantages` and `old_entropies`. A group is on one rank.
        """
        entropies = [batch.old_entropies for batch in batches if batch.old_entropies is not None]
        rows = [
            EntropyStatistics.from_tokens(row[None], mask[None])
            for batch, values in zip(batches, entropies, strict=True)
            for row, mask in zip(values, batch.response_mask, strict=True)
        ]
        if self.scope == "minibatch":
            total = sum(rows, EntropyStatistics())
            count, first, second = all_reduce([total.count, total.total, total.total_squares])
            pooled = [EntropyStatistics(count=count, total=first, total_squares=second)] * len(rows)
        else:
            pooled = self.pool(rows, torch.cat([batch.group_index for batch in batches]))
        found = iter(pooled)
        return [
            self.shape(batch.advantages, values, batch.response_mask, [next(found) for _ in batch.lengths])
            for batch, values in zip(batches, entropies, strict=True)
            if batch.advantages is not None
        ]

    def shape(
        self,
        advantages: Float[Tensor, "batch response"],
        token_entropy: Float[Tensor, "batch response"],
        response_mask: Bool[Tensor, "batch response"],
        statistics: EntropyStatistics | Sequence[EntropyStatistics],
    ) -> Float[Tensor, "batch response"]:
        """Return the advantage of every token.

        Args:
            advantages: One per token, finite.
            token_entropy: Shannon entropy of each token's distribution, in nats. No gradient flows into it.
            response_mask: True where the token is trained.
            statistics: Mean and standard deviation of the scope, one for all rows or one for each row.

        Returns:
            A * (1 + weight * (H - mean) / std), in the dtype of `advantages`; 0 outside the mask.

        Raises:
            ValueError: If `statistics` is a sequence that has not one entry per row.
        """
        rows = [statistics] * len(advantages) if isinstance(statistics, EntropyStatistics) else list(statistics)
        if len(rows) != len(advantages):
            raise ValueError(f"`statistics` must have {len(advantages)} entries, one per row, but got {len(rows)}.")
        mean = advantages.new_tensor([row.mean for row in rows])[:, None]
        std = advantages.new_tensor([row.std for row in rows])[:, None]
        entropy = zero_outside(token_entropy.detach(), response_mask).to(advantages.dtype)
        factor = 1 + self.weight * (entropy - mean) / std
        if self.guard:
            factor = factor.clamp(min=0.0)
        return zero_outside(advantages * factor, response_mask)
