"""Arithmetic over the response tokens of a batch.

Whatever stands outside the mask, NaN and infinity included, changes neither a value nor a gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.contracts.objective import WeightedMean

MAX_LOG_RATIO = 20.0
"""Bound on log-ratios before `exp`: e^20 is 4.9e8, far from overflow in float32 and far outside any clip range."""


def zero_outside(
    values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Return `values` with exact zeros where `mask` is False.

    Apply it before any arithmetic: a NaN that is masked afterwards still poisons the gradient, since 0 * NaN is NaN.

    Args:
        values: One number per token.
        mask: True where the number counts.

    Returns:
        The same shape and dtype; the gradient is 0 outside the mask.
    """
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def masked_sum(values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]) -> Float[Tensor, ""]:
    """Sum over the tokens of the mask.

    Args:
        values: One number per token.
        mask: True where the number counts.

    Returns:
        The sum, 0 for an empty mask.
    """
    return zero_outside(values, mask).sum()


def weighted_mean(values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]) -> WeightedMean:
    """Return the mean over the mask as numerator and denominator, detached, for logging.

    Args:
        values: One number per token.
        mask: True where the number counts.

    Returns:
        A mean that adds up over micro-batches and ranks; its weight is the number of tokens.
    """
    total = masked_sum(values.detach(), mask)
    return WeightedMean(total=total, weight=mask.sum().to(total.dtype))


def row_means(
    values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Return, for every token, the mean over the mask of its row; 0 for a row without any."""
    means = zero_outside(values, mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return means.expand_as(values)


def turn_means(
    values: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
) -> Float[Tensor, "batch response"]:
    """Return, for every token of the mask, the mean over its turn: the run of the mask that it stands in.

    Args:
        values: One number per token.
        mask: True where the policy sampled the token; what is read between two turns parts their runs.

    Returns:
        The same shape; 0 outside the mask.
    """
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    turns = starts.cumsum(-1) * mask  # 0 outside
    empty = values.new_zeros(len(values), values.shape[1] + 1)
    totals = empty.scatter_add(-1, turns, zero_outside(values, mask))
    counts = empty.scatter_add(-1, turns, mask.to(values.dtype))
    return zero_outside((totals / counts.clamp(min=1)).gather(-1, turns), mask)


def importance_ratio(log_importance_ratio: Float[Tensor, "batch response"]) -> Float[Tensor, "batch response"]:
    """Return exp(log pi_new - log pi_old), with the logarithm clamped to +-`MAX_LOG_RATIO`.

    Args:
        log_importance_ratio: `logprobs - old_logprobs`, in nats.

    Returns:
        The ratio, in [2.1e-9, 4.9e8]. Beyond the clamp the gradient is 0. NaN stays NaN.
    """
    return log_importance_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
