"""Drawing tokens from logits with random numbers that belong to a request, not to a batch.

The uniform number behind a token is a hash of the request's seed and the token's absolute position. It does not depend
on what else is in the batch or on how a sequence was split into requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK_34 = (1 << 34) - 1
_MASK_37 = (1 << 37) - 1
_MASK_33 = (1 << 33) - 1
_MASK_53 = (1 << 53) - 1

_LEAST_LOGPROB = -1e4


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# The three constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as signed 64-bit integers.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(state: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    # Right shifts of int64 copy the sign bit, so the upper bits are masked away.
    state = (state ^ ((state >> 30) & _MASK_34)) * _MIX_1
    state = (state ^ ((state >> 27) & _MASK_37)) * _MIX_2
    return state ^ ((state >> 31) & _MASK_33)


def counter_uniforms(seeds: Int[Tensor, " batch"], positions: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return one float64 in [0, 1) for each (seed, position), by two rounds of SplitMix64."""
    state = _mix(_mix(seeds) + (positions + 1) * _GOLDEN)
    return ((state >> 11) & _MASK_53).double() * 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledTokens:
    """One token for each row of a batch, with what is known about it."""

    token_ids: Int[Tensor, " batch"]
    logprobs: Float[Tensor, " batch"]
    entropies: Float[Tensor, " batch"]
    """Nats, over the whole vocabulary, at the sampling temperature."""
    all_logprobs: Float[Tensor, "batch vocab"]


def _restrict(
    probabilities: Float[Tensor, "batch vocab"], top_p: Float[Tensor, " batch"], top_k: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """Return probabilities with everything outside top-k and then top-p set to zero (not renormalised)."""
    ordered, index = probabilities.sort(dim=-1, descending=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    keep = (rank < top_k[:, None]) | (top_k[:, None] == 0)
    probabilities = ordered.double() * keep
    before = probabilities.cumsum(-1) - probabilities
    keep = before < (top_p.double() * probabilities.sum(-1))[:, None]
    return torch.zeros_like(probabilities).scatter(-1, index, probabilities * keep)


def penalise_repetition(
    logits: Float[Tensor, "batch vocab"], seen: Sequence[Sequence[int]], penalties: Sequence[float]
) -> Float[Tensor, "batch vocab"]:
    """Return a copy of scores in which each row's tokens so far are less likely.

    Args:
        logits: Unscaled scores.
        seen: The tokens of each row's prompt and response.
        penalties: One number for each row: positive scores are divided by it, others multiplied. 1 changes nothing.

    References:
        CTRL: A Conditional Transformer Language Model for Controllable Generation, arXiv:1909.05858, section 4.1; that
        negative scores are multiplied is what engines have made of it.
    """
    penalised = logits.float().clone()
    for row, (tokens, penalty) in enumerate(zip(seen, penalties, strict=True)):
        if penalty != 1:
            index = torch.tensor(tokens, device=logits.device)  # what stands there twice gets the same value twice
            scores = penalised[row, index]
            penalised[row, index] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return penalised


def sample_tokens(
    logits: Float[Tensor, "batch vocab"],
    temperature: Float[Tensor, " batch"],
    top_p: Float[Tensor, " batch"],
    top_k: Int[Tensor, " batch"],
    uniforms: Float[Tensor, " batch"],
    *,
    drawn_from: Float[Tensor, "batch vocab"] | None = None,
    restricts: bool | None = None,
    has_greedy: bool | None = None,
) -> SampledTokens:
    """Draw one token per row by inverting the cumulative distribution at `uniforms`.

    Args:
        logits: Unscaled scores.
        temperature: 0 takes the largest logit; log-probs and entropies are then those at temperature 1.
        top_p: Share of the probability mass to keep, 1 for all.
        top_k: How many of the most likely tokens to keep, 0 for all.
        uniforms: One number in [0, 1) per row.
        drawn_from: Scores that decide which tokens are drawn, where these are not `logits`, whose log-probs and
            entropies are reported all the same.
        restricts: Whether any row has a `top_p` or `top_k`. None reads the tensors, for which the host waits.
        has_greedy: Whether any row has temperature 0. None reads the tensor.

    Returns:
        Tokens, and their log-probs and entropies at `temperature` before top-p and top-k.
    """
    is_greedy = temperature == 0
    scale = torch.where(is_greedy, torch.ones_like(temperature), temperature)
    logprobs = torch.log_softmax(logits.float() / scale[:, None], dim=-1)
    probabilities = logprobs.exp()
    # p ln p tends to 0 with p, but 0 * -inf is NaN; exp() is 0 long before the bound.
    entropies = -(probabilities * logprobs.clamp(min=_LEAST_LOGPROB)).sum(-1)
    if drawn_from is not None:
        drawing = torch.log_softmax(drawn_from.float() / scale[:, None], dim=-1)
        probabilities = drawing.exp()
    if bool(((top_p < 1) | (top_k > 0)).any()) if restricts is None else restricts:
        probabilities = _restrict(probabilities, top_p, top_k)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    # right=True skips entries of zero probability: the first index whose cumulative mass exceeds the draw.
    draw = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = draw.clamp(max=logits.shape[-1] - 1)
    if bool(is_greedy.any()) if has_greedy is None else has_greedy:
        tokens = torch.where(is_greedy, (logprobs if drawn_from is None else drawing).argmax(-1), tokens)
    return SampledTokens(
        token_ids=tokens,
        logprobs=logprobs.gather(-1, tokens[:, None])[:, 0],
        entropies=entropies,
        all_logprobs=logprobs,
    )
