"""Entropies out of vLLM, which has no field for them: exact ones in the field of the token's rank, or a lower bound.

The bound is for a vLLM whose sampler cannot be replaced (`vllm.sampler`): the entropy of the largest log-probs only,
with an interval for what they leave out.
"""

import math
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from aepo_lightning.errors import EngineError

NUM_TOP = 20
"""Log-probs behind an entropy that is not exact: what vLLM servers allow a client to ask for by default."""
_MARK = 1 << 52
"""Set in every packed entropy and in no rank, so that a rank is never read as an entropy."""
_SCALE = float(1 << 32)
"""Entropies are fixed-point numbers with 32 fractional bits: finer than float32 from 2^-8 nats up."""


def pack_entropies(entropies: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return one integer per entropy (nats, below 2^20), exact to 2^-33."""
    return (entropies.double() * _SCALE).round().long() + _MARK


def unpack_entropy(code: int) -> float:
    """Return the entropy in nats behind one packed integer.

    Raises:
        EngineError: If the integer is a plain rank: this vLLM samples with a class that was not replaced.
    """
    if code < _MARK:
        raise EngineError(
            f"vLLM must report entropies, but reported the rank {code}. Use the vLLM release of the `vllm` extra, "
            "without speculative decoding."
        )
    return (code - _MARK) / _SCALE


def top_k_entropy_gap(top_logprobs: Sequence[float], vocab_size: int) -> tuple[float, float]:
    """Return the least and the most by which `ops.entropy.top_k_entropy` is below the exact entropy, in nats.

    With tail mass t over n tokens that are not listed, the missing part is at least -t ln t (all of it on one token)
    and at most t ln(n / t) (spread evenly).

    Args:
        top_logprobs: Log-probs of distinct tokens at one position.
        vocab_size: Number of tokens in the vocabulary.

    Returns:
        Both ends of the interval; zeros if every token is listed or the listed ones have all of the mass.

    Raises:
        ValueError: If more tokens are listed than there are.
    """
    num_left_out = vocab_size - len(top_logprobs)
    if num_left_out < 0:
        raise ValueError(
            f"`top_logprobs` must have at most {vocab_size} entries, but got {len(top_logprobs)}. List each once."
        )
    tail = 1.0 - math.fsum(math.exp(logprob) for logprob in top_logprobs)
    if num_left_out == 0 or tail <= 0:
        return 0.0, 0.0
    return -tail * math.log(tail), tail * math.log(num_left_out / tail)
