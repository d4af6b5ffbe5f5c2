"""What goes into vLLM with one request and what comes out of it, token by token."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from typing import Any

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.entropy import NUM_TOP, unpack_entropy
from aepo_lightning.engines.vllm.sampler import draw_arguments
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.entropy import top_k_entropy

_MIN_TEMPERATURE = 0.01
"""vLLM raises smaller ones to this, with a warning. Draws of our own do not read its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """One token as vLLM reported it."""

    token_id: int
    logprob: float
    entropy: float
    top_logprobs: list[float]
    """The largest log-probs that the request asked for and, if it is not among them, the sampled token's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStyle:
    """What all requests of one engine have in common."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    """Tokens that end a generation."""
    max_model_len: int
    is_exact: bool = True
    """Whether tokens are drawn by `vllm.sampler`; else by vLLM, and entropies are those of the top log-probs."""

    def check_prompt(self, prompt_ids: list[int]) -> None:
        """Refuse a prompt that vLLM cannot serve.

        Raises:
            EngineError: If the prompt is empty, leaves no room in the context or has unknown tokens.
        """
        if not 0 < len(prompt_ids) < self.max_model_len:
            raise EngineError(
                f"A prompt must have between 1 and {self.max_model_len - 1} tokens, but got {len(prompt_ids)}. "
                "Shorten the prompt or raise the engine's `max_model_len`."
            )
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise EngineError(
                f"Token ids of a prompt must be in [0, {self.vocab_size}), but got {min(prompt_ids)} to "
                f"{max(prompt_ids)}. Encode the prompt with the policy's tokenizer."
            )

    def native(self, params: SamplingParams, prompt_length: int) -> Any:
        """Return vLLM's own sampling parameters for one request."""
        vllm = import_module("vllm")
        num_top = params.num_top_logprobs if self.is_exact else max(NUM_TOP, params.num_top_logprobs)
        drawing: dict[str, Any] = {"seed": request_seed(params.seed, prompt_length)}
        if self.is_exact:
            drawing = {"extra_args": draw_arguments(params)}
        return vllm.SamplingParams(
            max_tokens=params.max_tokens,
            temperature=native_temperature(params),
            top_p=params.top_p,
            top_k=params.top_k,
            repetition_penalty=params.repetition_penalty,
            logprobs=min(num_top, self.vocab_size),
            flat_logprobs=True,
            stop_token_ids=list(self.eos_token_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
            **drawing,
        )

    def tokens(self, delta: Any, num_top: int) -> Iterator[SampledToken]:
        """Yield the new tokens of one of vLLM's outputs.

        Args:
            delta: vLLM's completion output since the last one.
            num_top: How many of the largest log-probs the request asked for.

        Raises:
            EngineError: If a token is not in the vocabulary, or its scores are no numbers.
        """
        flat = delta.logprobs
        for token, first, end in zip(delta.token_ids, flat.start_indices, flat.end_indices, strict=True):
            ids, listed = flat.token_ids[first + 1 : end], flat.logprobs[first + 1 : end]
            logprob = flat.logprobs[first]
            _check_sampled(token, logprob, self.vocab_size)
            yield SampledToken(
                token_id=token,
                logprob=logprob,
                entropy=unpack_entropy(flat.ranks[first])
                if self.is_exact
                else top_k_entropy(_and_sampled(listed, ids, token, logprob)),
                top_logprobs=_and_sampled(listed[:num_top], ids[:num_top], token, logprob) if num_top else [],
            )


def _check_sampled(token: int, logprob: float, vocab_size: int) -> None:
    if not (0 <= token < vocab_size and math.isfinite(logprob)):
        raise EngineError(
            f"Sampled tokens must be in [0, {vocab_size}) and have finite log-probs, but vLLM gave {token} with "
            f"{logprob}. Its logits are not finite: look at the last update, or use another `dtype`."
        )


def _and_sampled(listed: list[float], ids: list[int], token: int, logprob: float) -> list[float]:
    return listed if token in ids else [*listed, logprob]


def native_temperature(params: SamplingParams) -> float:
    """Return the temperature that vLLM is told."""
    return max(params.temperature, _MIN_TEMPERATURE) if params.temperature > 0 else 0.0


def request_seed(seed: int, prompt_length: int) -> int:
    """Hash a seed to the 63 bits that vLLM takes; a branch under its trunk's seed does not repeat the trunk's noise.

    The generator of the CPU uses the lower 32 bits only, so the upper ones must not carry the difference.
    """
    digest = blake2b(f"{seed}:{prompt_length}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
