"""Entropies in nats: of one token, and an estimate from its largest log-probs."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def token_entropy(logits: Float[Tensor, "*batch vocab"], temperature: float = 1.0) -> Float[Tensor, "*batch"]:
    """Return the Shannon entropy of softmax(logits / temperature), in nats.

    Args:
        logits: Unscaled scores. -inf excludes a token.
        temperature: The sampling temperature; use 1 for greedy sampling.

    Returns:
        A value in [0, ln vocab] for each row, in float32, or float64 for float64 logits.

    Raises:
        ValueError: If `temperature` is not positive.

    References:
        ARPO, arXiv:2507.19849, eq. 3.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, but got {temperature}. Use 1.0 for greedy sampling.")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    log_p = torch.log_softmax(precise / temperature, dim=-1)
    # p log p tends to 0 with p, but 0 * -inf is NaN.
    return -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(-1)


def top_k_entropy(top_logprobs: Sequence[float]) -> float:
    """Return -sum p log p over the listed tokens only, not renormalised, in nats.

    A lower bound of the exact entropy: every term left out is non-negative, and they are largest where the entropy is.

    Args:
        top_logprobs: Log-probs of distinct tokens at one position. -inf counts 0.

    Returns:
        The truncated entropy; 0 for an empty list.
    """
    return -math.fsum(math.exp(logprob) * logprob for logprob in top_logprobs if logprob > -math.inf)
