"""Exact entropies out of vLLM, which has no field for them: they travel in the field of the token's rank.

The wrapper computes log-probs and entropies from the logits before top-p and top-k, at each request's temperature, so
both mean what `types.Generation` says. Nothing here needs vLLM to be imported before an engine exists.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aepo_lightning.errors import EngineError

_MARK = 1 << 52
"""Set in every packed entropy and in no rank, so that a rank is never read as an entropy."""
_SCALE = float(1 << 32)
"""Entropies are fixed-point numbers with 32 fractional bits: finer than float32 from 2^-8 nats up."""
_GREEDY_BELOW = 1e-5
"""Below this temperature vLLM's sampler takes the most likely token."""
_ROWS_AT_ONCE = 32
"""Bounds the temporaries of the entropy: 20 MB per pass for a vocabulary of 152k."""


def pack_entropies(entropies: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return one integer per entropy (nats, below 2^20), exact to 2^-33."""
    return (entropies.double() * _SCALE).round().long() + _MARK


def unpack_entropy(code: int) -> float:
    """Return the entropy in nats behind one packed integer.

    Raises:
        EngineError: If the integer is a plain rank: this vLLM samples with a class that was not wrapped.
    """
    if code < _MARK:
        raise EngineError(
            f"vLLM must report entropies, but reported the rank {code}. Use the vLLM release of the `vllm` extra, "
            "without speculative decoding."
        )
    return (code - _MARK) / _SCALE


def tempered_logprobs(
    logits: Float[Tensor, "batch vocab"], temperature: Float[Tensor, " batch"] | None
) -> Float[Tensor, "batch vocab"]:
    """Return log-probs at each row's temperature; 0 and None (greedy) mean temperature 1."""
    if temperature is None:
        return torch.log_softmax(logits.float(), dim=-1)
    scale = torch.where(temperature < _GREEDY_BELOW, torch.ones_like(temperature), temperature)
    return torch.log_softmax(logits.float() / scale[:, None], dim=-1)


def row_entropies(logprobs: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """Return the Shannon entropy of each row in nats."""
    return torch.cat([torch.special.entr(rows.exp()).sum(-1) for rows in torch.split(logprobs, _ROWS_AT_ONCE)])


def report_entropies(sampler: Any) -> None:
    """Wrap one sampler of vLLM so that the rank of each sampled token is its packed entropy.

    Only this instance changes; other engines of the process keep theirs.
    """
    sampler.forward = _with_entropies(sampler.forward, import_module("vllm.v1.outputs").LogprobsTensors)


def _with_entropies(original: Callable[..., Any], make_logprobs: Callable[..., Any]) -> Callable[..., Any]:
    def forward(logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        num_top = sampling_metadata.max_num_logprobs
        if num_top is None:
            return original(logits, sampling_metadata, *args, **kwargs)
        # Before the original, which scales and masks float32 logits in place.
        logprobs = tempered_logprobs(logits, sampling_metadata.temperature)
        output = original(logits, replace(sampling_metadata, max_num_logprobs=None), *args, **kwargs)
        sampled = output.sampled_token_ids.long()
        top = logprobs.topk(num_top, dim=-1)
        output.logprobs_tensors = make_logprobs(
            torch.cat((sampled, top.indices), dim=-1).int(),
            torch.cat((logprobs.gather(-1, sampled), top.values), dim=-1),
            pack_entropies(row_entropies(logprobs)),
        )
        return output

    return forward
