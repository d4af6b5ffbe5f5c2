"""Whether the entropies that `vllm.sampler` reports are those of vLLM's own distribution, asked once per engine."""

import math
from dataclasses import replace
from typing import Any

import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm import launch as vllm_launch
from aepo_lightning.engines.vllm.requests import RequestStyle
from aepo_lightning.engines.vllm.sampler import install
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.entropy import top_k_entropy

BOUND = 1e-3
"""Nats by which two sums in float32 over the same logits may differ, with room for a vocabulary of 152k."""
_TEMPERATURES = (1.0, 0.5)
_NUM_TOKENS = 2
_PROMPT_LENGTH = 5


def entropy_problem(llm: Any, style: RequestStyle) -> str:
    """Sample a few tokens at two temperatures and compare their scores with the whole distribution as vLLM has it.

    Both are read off the same contexts in the same batch, so that any precision of the model gives the same logits.

    Args:
        llm: An idle engine in this process, with weights, whose sampler was replaced.
        style: How its requests look.

    Returns:
        What is wrong, or an empty string if no difference is above `BOUND`.
    """
    length = min(_PROMPT_LENGTH, style.max_model_len - 1)
    contexts = [[(7 * index + 3) % style.vocab_size for index in range(length)] for _ in _TEMPERATURES]
    problem = ""
    for _ in range(min(_NUM_TOKENS, style.max_model_len - length)):
        try:
            reported = [next(style.tokens(delta, 0)) for delta in _sample(llm, style, contexts)]
        except EngineError as error:
            return str(error)
        runner = vllm_launch.worker(llm).model_runner
        vllm_launch.use_own_sampler(llm)
        try:
            own = [delta.logprobs for delta in _sample(llm, replace(style, is_exact=False), contexts)]
        finally:
            install(runner)
        for context, token, flat in zip(contexts, reported, own, strict=True):
            logprobs = dict(zip(flat.token_ids, flat.logprobs, strict=True))
            problem = problem or _difference("entropy", token.entropy, top_k_entropy(list(logprobs.values())))
            problem = problem or _difference("log-prob", token.logprob, logprobs[token.token_id])
            context.append(token.token_id)
    llm.reset_prefix_cache()
    return problem


def _difference(name: str, reported: float, own: float) -> str:
    if math.fabs(reported - own) <= BOUND:
        return ""
    return f"The {name} reported for a token is {reported}, but vLLM's own distribution says {own}."


def _sample(llm: Any, style: RequestStyle, contexts: list[list[int]]) -> list[Any]:
    """Return the first output after each context, one context per temperature."""
    engine = llm.llm_engine
    llm.reset_prefix_cache()
    names = [f"check-{index}" for index in range(len(contexts))]
    outputs: dict[str, Any] = {}
    num_top = 0 if style.is_exact else style.vocab_size
    try:
        for name, context, temperature in zip(names, contexts, _TEMPERATURES, strict=True):
            params = SamplingParams(max_tokens=1, temperature=temperature, num_top_logprobs=num_top)
            engine.add_request(name, {"prompt_token_ids": context[:]}, style.native(params, len(context)))
        with torch.random.fork_rng(devices=[]):
            while len(outputs) < len(names):
                outputs |= {output.request_id: output.outputs[0] for output in engine.step()}
    finally:
        engine.abort_request(names)
    return [outputs[name] for name in names]
