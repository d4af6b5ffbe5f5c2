"""Statistics over the response tokens of an optimiser step, on all ranks, whatever its split into micro-batches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.ops.masked import zero_outside


def num_chosen(fraction: float, values: Float[Tensor, " _"]) -> int:
    """Return how many values are a fraction of those on all ranks, at least one where there is any. Collective."""
    total = int(all_reduce([len(values)])[0])
    return min(total, max(1, round(fraction * total)))


def kth_largest(values: Float[Tensor, " _"], k: int) -> float:
    """Return the k-th largest value on all ranks, exactly. Collective.

    Args:
        values: Of this rank, finite; compared as float32, so what is compared with the answer must be float32 too.
        k: From 1 to the number of values on all ranks.
    """
    # Positive floats are ordered like their bits, negative ones the other way round. Adding 0 makes -0 a 0.
    bits = (values.detach().float() + 0.0).view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low, high = -(2**31), 2**31 - 1
    while low < high:
        middle = (low + high + 1) // 2
        if all_reduce([int((keys >= middle).sum())])[0] >= k:
            low = middle
        else:
            high = middle - 1
    found = torch.tensor(low if low >= 0 else low ^ 0x7FFFFFFF, dtype=torch.int32)
    return float(found.view(torch.float32))


def response_tokens(values: Sequence[Float[Tensor, "_ _"]], batches: Sequence[TrajectoryBatch]) -> Float[Tensor, " _"]:
    """Return the values of the response tokens of this rank, one after the other.

    Args:
        values: One number per token of each micro-batch.
        batches: The micro-batches.
    """
    chosen = [each[batch.response_mask] for each, batch in zip(values, batches, strict=True)]
    return torch.cat([torch.empty(0), *chosen])


def covariance_terms(batches: Sequence[TrajectoryBatch]) -> list[Float[Tensor, "_ _"]]:
    """Return what each token adds to the covariance of log-prob and advantage over the step. Collective.

    Args:
        batches: All micro-batches of this rank, with `advantages` and `old_logprobs`.

    Returns:
        (log pi_old - mean) * (A - mean) of every token, 0 outside the response mask; means over all response tokens.

    References:
        The entropy mechanism, arXiv:2505.22617, eq. 10.
    """
    logprobs = [_of(batch.old_logprobs) for batch in batches]
    advantages = [_of(batch.advantages) for batch in batches]
    sums = [float(response_tokens(each, batches).double().sum()) for each in (logprobs, advantages)]
    count, *totals = all_reduce([sum(int(batch.response_mask.sum()) for batch in batches), *sums])
    mean_logprob, mean_advantage = (total / max(1.0, count) for total in totals)
    return [
        zero_outside((logprob - mean_logprob) * (advantage - mean_advantage), batch.response_mask)
        for logprob, advantage, batch in zip(logprobs, advantages, batches, strict=True)
    ]


def _of(values: Float[Tensor, "batch response"] | None) -> Float[Tensor, "batch response"]:
    assert values is not None, "`ExperienceBuilder` fills it in"
    return values
