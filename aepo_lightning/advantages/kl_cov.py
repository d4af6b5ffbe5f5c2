"""The tokens that would lower the entropy most are held back by a penalty on leaving the old policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.advantages.step_tokens import covariance_terms, kth_largest, num_chosen, response_tokens
from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class KLCov:
    """Add coefficient * |log pi - log pi_old| to the losses of the tokens with the highest covariance.

    Which tokens these are is decided once for an optimiser step. Of tokens with the covariance at the border, all are
    penalised, and none whose covariance is not positive: it would not lower the entropy.

    References:
        KL-Cov: The entropy mechanism, arXiv:2505.22617, eqs. 10, 13 and 14; defaults from its code, which leaves out
        the clipping of PPO as well: `clip_range_low=1`, `clip_range_high=inf`. Departure: log-probs in the covariance
        are those before the update, over the whole optimiser step on all ranks, where the code takes the current ones
        of a micro-batch.
    """

    fraction: float = 2e-4
    """Share of the response tokens of an optimiser step that is penalised; at least one token."""
    coefficient: float = 1.0
    """Weight of the penalty."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"`fraction` must be in (0, 1], but got {self.fraction}. Use None for no penalty.")
        if not 0 < self.coefficient < math.inf:
            raise ConfigError(f"`coefficient` must be positive and finite, but got {self.coefficient}.")

    def __call__(self, batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
        """Return the weight of the penalty in the loss of every token, 0 outside the mask. Collective.

        Args:
            batches: All micro-batches of this rank, with `advantages` and `old_logprobs`.
        """
        covariances = covariance_terms(batches)
        own = response_tokens(covariances, batches)
        border = kth_largest(own, num_chosen(self.fraction, own))
        return [
            torch.where(batch.response_mask & (each.float() >= border) & (each > 0), self.coefficient, 0.0)
            for each, batch in zip(covariances, batches, strict=True)
        ]
