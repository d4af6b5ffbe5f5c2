"""The entropy of one token in nats, estimated from its largest log-probs."""

import math
from collections.abc import Sequence


def top_k_entropy(top_logprobs: Sequence[float]) -> float:
    """Return -sum p log p over the listed tokens only, not renormalised, in nats.

    A lower bound of the exact entropy: every term left out is non-negative, and they are largest where the entropy is.

    Args:
        top_logprobs: Log-probs of distinct tokens at one position. -inf counts 0.

    Returns:
        The truncated entropy; 0 for an empty list.
    """
    return -math.fsum(math.exp(logprob) * logprob for logprob in top_logprobs if logprob > -math.inf)
