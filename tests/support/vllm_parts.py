"""What the tests of the vLLM engine share: tiny engines and policies, one or several generations."""

import asyncio

import pytest

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.vllm.engine import VLLMEngine
from tests.support.builders import Biased, reference_scores, tiny_policy

# Two float32 computations of the same sums in another order, one of them with vLLM's kernels.
CLOSE = {"abs": 1e-4}
PROMPT = [5, 9, 30, 8, 70, 61]
BLOCK = 32
"""Tokens of one block of the prefix cache: the smallest on the CPU."""


def vllm_policy(tokenizer=None, seed=0, **fields):
    """A tiny policy whose heads are as small as vLLM's CPU kernels take them."""
    policy = tiny_policy(tokenizer=tokenizer, head_dim=32, **fields)
    policy.seed = seed
    return policy


def make_engine(policy=None, **settings):
    defaults = {"max_model_len": 160, "max_num_seqs": 16, "dtype": "float32", "kv_cache_memory_bytes": 16 << 20}
    return VLLMEngine(policy or vllm_policy(), **(defaults | settings))


def params(max_tokens=6, **fields):
    return SamplingParams(max_tokens=max_tokens, **fields)


def generate(engine, requests):
    async def run():
        return await asyncio.gather(*(engine.generate(tokens, each) for tokens, each in requests))

    return asyncio.run(run())


def one(engine, tokens=PROMPT, each=None, on_probe=None):
    return asyncio.run(engine.generate(list(tokens), each or params(), on_probe))


def prompt(length, salt=0):
    return [2 + (7 * position + 13 * salt) % 250 for position in range(length)]


def assert_exact(model, tokens, generation, temperature=1.0):
    logprobs, entropies = reference_scores(model, [*tokens, *generation.token_ids], len(tokens), temperature)
    assert generation.logprobs == pytest.approx(logprobs, **CLOSE)
    assert generation.entropies == pytest.approx(entropies, **CLOSE)


def biased(text):
    """A policy that vLLM takes and that always writes the text."""
    return Biased(text, vllm_policy())


def biased_engine(engine, text):
    """The shared engine with the weights of a biased policy."""
    policy = biased(text)
    engine.load_weights(policy.build_model().named_parameters(), 0)
    return policy
