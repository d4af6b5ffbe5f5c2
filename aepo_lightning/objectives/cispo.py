"""CISPO: clip the importance weight, never the gradient."""

from dataclasses import dataclass

import torch

from aepo_lightning.contracts.objective import ObjectiveInput, ObjectiveOutput
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives.clip_metrics import ClippedTokens, clip_metrics, clippable_fraction, entropy_metrics
from aepo_lightning.objectives.ratio_metrics import ratio_metrics
from aepo_lightning.ops.masked import importance_ratio, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class Cispo:
    """The policy gradient with a detached, clipped importance weight: -sg(clip(r, 1 - low, 1 + high)) * A * log pi.

    Every token keeps a gradient, for advantages of both signs.

    References:
        MiniMax-M1, arXiv:2506.13585. The paper has no lower bound and does not publish the upper one.
    """

    clip_range_low: float | None = None
    """The weight is at least 1 - clip_range_low. None sets no lower bound."""
    clip_range_high: float = 4.0
    """The weight is at most 1 + clip_range_high; 4 makes it the cap of 5 that other libraries state as a ratio."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if self.clip_range_low is not None and not 0 <= self.clip_range_low <= 1:
            raise ConfigError(f"`clip_range_low` must be None (no bound) or in [0, 1], but got {self.clip_range_low}.")
        if not self.clip_range_high >= 0:
            raise ConfigError(f"`clip_range_high` must not be negative, but got {self.clip_range_high}.")

    def __call__(self, inputs: ObjectiveInput) -> ObjectiveOutput:
        """Return the loss of every token.

        Args:
            inputs: Log-probs, advantages and mask. Gradients flow into `logprobs` only.

        Returns:
            Losses that are exactly 0 outside the mask in value and gradient, and what `clip_metrics`,
            `clippable_fraction`, `entropy_metrics` and `ratio_metrics` say about tokens beyond a bound, whatever the
            advantage; the ratio is the one before clipping.
        """
        mask = inputs.response_mask
        logprobs = zero_outside(inputs.logprobs, mask)
        old_logprobs = zero_outside(inputs.old_logprobs.detach(), mask)
        advantages = zero_outside(inputs.advantages.detach(), mask)
        ratio = importance_ratio(logprobs.detach() - old_logprobs)
        lowest = 0.0 if self.clip_range_low is None else 1 - self.clip_range_low
        highest = 1 + self.clip_range_high
        clipped = ClippedTokens(high=(ratio > highest) & mask, low=(ratio < lowest) & mask, dual=torch.zeros_like(mask))
        metrics = clip_metrics(clipped, ratio, advantages, mask, preserved_high=highest, preserved_low=lowest)
        metrics |= entropy_metrics(clipped, inputs.old_entropies, mask)
        metrics["clippable_fraction"] = clippable_fraction(old_logprobs, mask, mask, self.clip_range_high)
        metrics |= ratio_metrics(logprobs, old_logprobs, ratio, mask)
        return ObjectiveOutput(token_losses=-ratio.clamp(lowest, highest) * advantages * logprobs, metrics=metrics)
