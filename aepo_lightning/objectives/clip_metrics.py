"""What clipping does to the gradient: which tokens it touches, how uncertain they were, how much of it they are.

The gradient of a token's loss is F A grad(log pi), with A the advantage and F what the objective makes of the
importance ratio r; without any clipping F is r. The mass of a token is |F A|: its share of the gradient in units of its
own grad(log pi), before the aggregation over tokens.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.contracts.objective import WeightedMean
from aepo_lightning.ops.masked import zero_outside


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClippedTokens:
    """Which tokens are beyond a bound where that matters. No token is in two of them, and none is outside the mask."""

    high: Bool[Tensor, "batch response"]
    low: Bool[Tensor, "batch response"]
    dual: Bool[Tensor, "batch response"]
    """Beyond the upper bound of a negative advantage. These keep no gradient."""


def clip_metrics(
    clipped: ClippedTokens,
    importance_ratio: Float[Tensor, "batch response"],
    advantages: Float[Tensor, "batch response"],
    response_mask: Bool[Tensor, "batch response"],
    *,
    preserved_high: float,
    preserved_low: float,
) -> dict[str, WeightedMean]:
    """Return how many tokens are beyond a bound and how much of the gradient they are.

    Args:
        clipped: Tokens beyond each bound.
        importance_ratio: r, finite outside the mask.
        advantages: A, 0 outside the mask.
        response_mask: True where the token is trained.
        preserved_high: F of a token beyond the upper bound; 0 if it has no gradient.
        preserved_low: F of a token beyond the lower bound; 0 if it has no gradient.

    Returns:
        `clip_fraction_high`, `clip_fraction_low`, `clip_fraction_dual` and `gradient_preserved_fraction` (beyond a
        bound and still with a gradient), all of the response tokens. `gradient_mass_clipped_fraction`: the mass without
        clipping, r |A|, of the tokens beyond a bound, over that of all tokens. `gradient_mass_preserved_fraction`: the
        mass F |A| that they keep, over the same. It is above the former where F is above r, as beyond a lower bound
        that keeps its gradient.
    """
    sizes = advantages.abs().to(importance_ratio.dtype)
    masses = importance_ratio.detach() * sizes
    count, total = response_mask.sum().to(sizes.dtype), masses.sum()
    high, low, dual = (tokens.to(sizes.dtype) for tokens in (clipped.high, clipped.low, clipped.dual))
    num_high, num_low = high.sum(), low.sum()
    preserved = preserved_high * _sum_of(sizes, high) + preserved_low * _sum_of(sizes, low)
    lost = _sum_of(masses, high) + _sum_of(masses, low) + _sum_of(masses, dual)
    kept = num_high * (preserved_high > 0) + num_low * (preserved_low > 0)
    return {
        "clip_fraction_high": WeightedMean(total=num_high, weight=count),
        "clip_fraction_low": WeightedMean(total=num_low, weight=count),
        "clip_fraction_dual": WeightedMean(total=dual.sum(), weight=count),
        "gradient_preserved_fraction": WeightedMean(total=kept, weight=count),
        "gradient_mass_clipped_fraction": WeightedMean(total=lost, weight=total),
        "gradient_mass_preserved_fraction": WeightedMean(total=preserved, weight=total),
    }


def entropy_metrics(
    clipped: ClippedTokens,
    old_entropies: Float[Tensor, "batch response"] | None,
    response_mask: Bool[Tensor, "batch response"],
) -> dict[str, WeightedMean]:
    """Return how uncertain the old policy was at the clipped tokens and at all of them.

    Args:
        clipped: Tokens beyond each bound.
        old_entropies: Of the policy before the update, in nats. Without them there is nothing to say.
        response_mask: True where the token is trained.

    Returns:
        `old_entropy`, `entropy_beyond_high` and `entropy_beyond_low`: means in nats over the response tokens, and over
        those beyond the bound. The weight of a mean is the number of its tokens, 0 where none is.
    """
    if old_entropies is None:
        return {}
    entropies = zero_outside(old_entropies.detach(), response_mask)
    high, low = clipped.high.to(entropies.dtype), clipped.low.to(entropies.dtype)
    return {
        "old_entropy": WeightedMean(total=entropies.sum(), weight=response_mask.sum().to(entropies.dtype)),
        "entropy_beyond_high": WeightedMean(total=_sum_of(entropies, high), weight=high.sum()),
        "entropy_beyond_low": WeightedMean(total=_sum_of(entropies, low), weight=low.sum()),
    }


def clippable_fraction(
    old_logprobs: Float[Tensor, "batch response"],
    is_candidate: Bool[Tensor, "batch response"],
    response_mask: Bool[Tensor, "batch response"],
    clip_range_high: float,
) -> WeightedMean:
    """Return the share of response tokens that an update could bring above the upper bound at all.

    A probability cannot exceed 1, so the ratio of a token cannot exceed 1 / pi_old: only where pi_old is below
    1 / (1 + clip_range_high) can it get beyond the bound.

    Args:
        old_logprobs: Of the tokens; of an objective on whole sequences, their mean over the sequence at every token.
        is_candidate: Where the upper bound matters: with a positive advantage, for most objectives.
        response_mask: True where the token is trained.
        clip_range_high: The upper bound is 1 + this.
    """
    can = (old_logprobs < -math.log1p(clip_range_high)) & is_candidate & response_mask
    weight = response_mask.sum().to(old_logprobs.dtype)
    return WeightedMean(total=can.sum().to(old_logprobs.dtype), weight=weight)


def _sum_of(values: Float[Tensor, "batch response"], chosen: Float[Tensor, "batch response"]) -> Float[Tensor, ""]:
    """Return the sum of the values where `chosen` is 1 and not 0, in one pass."""
    return torch.dot(values.flatten(), chosen.flatten())
