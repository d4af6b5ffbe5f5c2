"""One clipped surrogate for GRPO, DAPO, GPPO, CE-GPPO, EBPO and GSPO.

They share the value of the PPO-clip loss. They differ in the gradient that tokens beyond the clip range keep.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.contracts.objective import ObjectiveInput, ObjectiveOutput, WeightedMean
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives.clip_metrics import ClippedTokens, clip_metrics, clippable_fraction, entropy_metrics
from aepo_lightning.objectives.ratio_metrics import ratio_metrics
from aepo_lightning.ops.masked import importance_ratio, row_means, turn_means, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedSurrogate:
    r"""The PPO-clip loss, with a choice of how much gradient clipped tokens keep.

    With r the importance ratio and A the advantage, the loss of a token is -min(r A, clip(r, 1 - low, 1 + high) A),
    and its gradient is -F A grad(log pi), where

        F = preserve_high * (1 + high)   if A > 0 and r > 1 + high
        F = preserve_low * (1 - low)     if A < 0 and r < 1 - low
        F = 0                            if A < 0 and r > dual_clip
        F = r                            otherwise

    | algorithm | preserve_low | preserve_high | other |
    |---|---|---|---|
    | GRPO | 0 | 0 | |
    | DAPO | 0 | 0 | clip_range_high = 0.28 |
    | EBPO (AEPO) | 0 | 1 | |
    | GPPO | 1 | 1 | |
    | CE-GPPO | 0.75 | 1 | clip_range_high = 0.28, dual_clip = 3 |
    | GSPO | 0 | 0 | ratio_level = "sequence", clip ranges 3e-4 and 4e-4 |
    | AT2PO | 0 | 0 | ratio_level = "turn", clip ranges 3e-3 and 4e-3 |

    The value is that of PPO-clip for every choice of the coefficients: a clipped token is worth (1 +- range) A, the
    limit at the bound, so the loss is continuous in r and comparable between algorithms. CE-GPPO's formula,
    preserve * (1 +- range) * r / sg(r) * A, has the same gradient; its value has a jump at the bound unless the
    coefficient is 1, and the constant that makes the jump trains nothing.

    References:
        EBPO: AEPO, arXiv:2510.14545, the clipping-balanced objective. GPPO: arXiv:2508.07629. CE-GPPO:
        arXiv:2509.20712. GSPO: arXiv:2507.18071. AT2PO: arXiv:2601.04767. Dual clip: arXiv:1912.09729. Departure:
        log-ratios are clamped to +-20, beyond which tokens in the region "otherwise" have no gradient.
    """

    clip_range_low: float = 0.2
    """The ratio is clipped below 1 - clip_range_low where the advantage is negative."""
    clip_range_high: float = 0.2
    """The ratio is clipped above 1 + clip_range_high where the advantage is positive. Infinite: it is not."""
    preserve_low: float = 0.0
    """Share of the gradient that tokens below the range keep. 0 is PPO's hard clip."""
    preserve_high: float = 0.0
    """Share of the gradient that tokens above the range keep. 0 is PPO's hard clip."""
    dual_clip: float | None = None
    """Largest ratio for a negative advantage. None leaves it unbounded; the released AEPO code uses 3."""
    ratio_level: Literal["token", "turn", "sequence"] = "token"
    """`sequence`: every token has the geometric mean of the ratios of its trajectory. `turn`: of its turn."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 <= self.clip_range_low <= 1:
            raise ConfigError(f"`clip_range_low` must be in [0, 1], but got {self.clip_range_low}.")
        if not self.clip_range_high >= 0:
            raise ConfigError(f"`clip_range_high` must not be negative, but got {self.clip_range_high}.")
        if not self.preserve_low >= 0:
            raise ConfigError(f"`preserve_low` must not be negative, but got {self.preserve_low}.")
        if not self.preserve_high >= 0:
            raise ConfigError(f"`preserve_high` must not be negative, but got {self.preserve_high}.")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"`dual_clip` must be None (off) or above 1, but got {self.dual_clip}.")
        if self.ratio_level not in ("token", "turn", "sequence"):
            raise ConfigError(f"`ratio_level` must be 'token', 'turn' or 'sequence', but got {self.ratio_level!r}.")

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        """Return the loss of every token.

        Args:
            inputs: Log-probs, advantages and mask. Gradients flow into `logprobs` only.

        Returns:
            Losses that are exactly 0 outside the mask in value and gradient, and what `clip_metrics`, `entropy_metrics`
            and `ratio_metrics` say about tokens beyond a bound with the sign of the advantage for which it matters,
            with the ratio of `ratio_level`. `clippable_fraction`: with a positive advantage and an old probability
            below 1 / (1 + clip_range_high).
        """
        mask = inputs.response_mask
        logprobs = zero_outside(inputs.logprobs, mask)
        old_logprobs = zero_outside(inputs.old_logprobs.detach(), mask)
        advantages = zero_outside(inputs.advantages.detach(), mask)
        # Value 0, gradient that of the log-prob.
        carrier = logprobs - logprobs.detach()
        ratio = importance_ratio(self._log_ratio(logprobs, old_logprobs, carrier, mask))
        regions = self._regions(ratio, advantages)
        weights = torch.where(regions.high, self._bounded(1 + self.clip_range_high, self.preserve_high, carrier), ratio)
        weights = torch.where(regions.low, self._bounded(1 - self.clip_range_low, self.preserve_low, carrier), weights)
        if self.dual_clip is not None:
            weights = weights.masked_fill(regions.dual, self.dual_clip)
        metrics = self._metrics(inputs, regions, ratio, old_logprobs, advantages)
        metrics |= ratio_metrics(logprobs, old_logprobs, ratio, mask)
        return ObjectiveOutput(token_losses=-weights * advantages, metrics=metrics)

    def _metrics(
        self,
        inputs: ObjectiveInput,
        regions: ClippedTokens,
        ratio: Float[Tensor, "batch response"],
        old_logprobs: Float[Tensor, "batch response"],
        advantages: Float[Tensor, "batch response"],
    ) -> dict[str, WeightedMean]:
        mask = inputs.response_mask
        # Beyond an infinite bound there is nothing.
        high = self.preserve_high * (1 + self.clip_range_high) if self.clip_range_high < math.inf else 0.0
        low = self.preserve_low * (1 - self.clip_range_low)
        metrics = clip_metrics(regions, ratio, advantages, mask, preserved_high=high, preserved_low=low)
        metrics |= entropy_metrics(regions, inputs.old_entropies, mask)
        if self.ratio_level != "token":
            old_logprobs = self._mean(old_logprobs, mask)
        fraction = clippable_fraction(old_logprobs, advantages > 0, mask, self.clip_range_high)
        return metrics | {"clippable_fraction": fraction}

    def _log_ratio(
        self,
        logprobs: Float[Tensor, "batch response"],
        old_logprobs: Float[Tensor, "batch response"],
        carrier: Float[Tensor, "batch response"],
        mask: Bool[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response"]:
        log_ratio = logprobs - old_logprobs
        if self.ratio_level == "token":
            return log_ratio
        # GSPO-token (arXiv:2507.18071): the value of the sequence, the gradient of the token.
        return carrier + self._mean(log_ratio.detach(), mask)

    def _mean(
        self, values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        return row_means(values, mask) if self.ratio_level == "sequence" else turn_means(values, mask)

    def _regions(
        self, ratio: Float[Tensor, "batch response"], advantages: Float[Tensor, "batch response"]
    ) -> ClippedTokens:
        return ClippedTokens(
            high=(advantages > 0) & (ratio > 1 + self.clip_range_high),
            low=(advantages < 0) & (ratio < 1 - self.clip_range_low),
            dual=(advantages < 0) & (ratio > (self.dual_clip if self.dual_clip is not None else torch.inf)),
        )

    @staticmethod
    def _bounded(
        bound: float, preserve: float, carrier: Float[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        """Return a weight of value `bound` whose gradient is preserve * bound * grad(log pi)."""
        # A constant for 0, since 0 * carrier is NaN for a log-prob of -inf, and for a bound that nothing is beyond.
        is_kept = preserve > 0 and bound < math.inf
        return bound * (1 + preserve * carrier) if is_kept else torch.full_like(carrier, bound)
