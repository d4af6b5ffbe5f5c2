"""Advantages whitened over an optimiser step: every token of every micro-batch and rank."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.distributed.collectives import all_reduce

EPSILON = 1e-8
"""Added to the variance."""


def whiten(batches: Sequence[TrajectoryBatch]) -> None:
    """Subtract the mean from the advantages of response tokens and divide by their standard deviation. Collective.

    Mean and variance are over the response tokens of the step on all ranks, each counted with the weight of its
    trajectory. Equal advantages become exact zeros.

    Args:
        batches: Of one optimiser step, on this rank. `token_advantages` is replaced.

    References:
        REINFORCE++, arXiv:2501.03262, global advantage normalization. The variance has Bessel's correction, as in verl.
        Departure: statistics are those of an optimiser step, not of the whole iteration, where these differ.
    """
    tokens = [_weighted_tokens(batch) for batch in batches]
    values = torch.cat([torch.empty(0, dtype=torch.float64), *[value for value, _ in tokens]])
    weights = torch.cat([torch.empty(0, dtype=torch.float64), *[weight for _, weight in tokens]])
    # Shifted by a value that all ranks share, because the mean of equal numbers need not be that number.
    (shift,) = all_reduce([float(values.max()) if len(values) else -math.inf], "max")
    if shift == -math.inf:
        return
    values = values - shift
    count, total, weight = all_reduce([len(values), float((weights * values).sum()), float(weights.sum())])
    if not weight:
        return
    mean = total / weight
    (squares,) = all_reduce([float((weights * (values - mean).square()).sum())])
    variance = squares / weight * count / max(1.0, count - 1)
    scale = 1 / math.sqrt(variance + EPSILON)
    for batch in batches:
        centered = (token_advantages(batch).double() - shift - mean) * scale
        batch.token_advantages = torch.where(batch.response_mask, centered, 0.0).float()


def token_advantages(batch: TrajectoryBatch) -> Float[Tensor, "batch response"]:
    """Return the advantage of every token before shaping, 0 outside the response mask."""
    if batch.token_advantages is None:
        return batch.sequence_advantages[:, None] * batch.response_mask
    return batch.token_advantages * batch.response_mask


def _weighted_tokens(batch: TrajectoryBatch) -> tuple[Float[Tensor, " _"], Float[Tensor, " _"]]:
    mask = batch.response_mask
    weights = torch.ones(len(mask)) if batch.weights is None else batch.weights
    return token_advantages(batch)[mask].double(), weights[:, None].expand_as(mask)[mask].double()
