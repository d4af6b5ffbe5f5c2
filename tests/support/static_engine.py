"""Embedded engines whose decoding steps have a fixed shape, on a CPU, and what they are compared by."""

import asyncio
from itertools import chain

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines import TransformersEngine
from aepo_lightning.engines.transformers import engine as module

CLOSE = 5e-6
"""The same sums of float32 in another order."""
KINDS = [{}, {"temperature": 0.0}, {"top_p": 0.8}, {"top_k": 3, "temperature": 0.7}, {"num_top_logprobs": 4}]


def run_again(step):
    """Capture nothing: run the step each time."""
    return step


def traced(step):
    """Record the operations of a step with the tensors they read and write, as a CUDA graph does, and run only them.

    Whatever Python decides is decided once, asking a tensor for its value is an error, and every run writes its result
    to the same memory.
    """
    graph = make_fx(step)()
    result = torch.full_like(graph(), torch.nan)
    return lambda: result.copy_(graph())


def static_engine(monkeypatch, policy, capture=run_again, cuda_graphs="auto", **settings):
    """An engine that captures its steps by `capture`."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module, "choose_capture", lambda *_: capture)
        sizes = {"max_num_seqs": 8, "max_model_len": 64} | settings
        return TransformersEngine(policy, cuda_graphs=cuda_graphs, **sizes)


def prompt(length, salt=0):
    return [2 + (7 * position + 13 * salt) % 250 for position in range(length)]


def generate(engine, requests):
    async def run():
        return await asyncio.gather(*(engine.generate(tokens, params) for tokens, params in requests))

    return asyncio.run(run())


def assert_same(found, expected, close=CLOSE):
    """Tokens are equal; numbers up to rounding."""
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert one.num_cached_tokens == other.num_cached_tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=close, rel=close)
        assert one.entropies == pytest.approx(other.entropies, abs=close, rel=close)
        assert list(map(len, one.top_logprobs)) == list(map(len, other.top_logprobs))
        assert list(chain(*one.top_logprobs)) == pytest.approx(list(chain(*other.top_logprobs)), abs=close, rel=close)


def turns(engine, num_chains=5, num_turns=3):
    """Chains of several turns with tool results, and a branch from the middle of each."""
    tokens, found = [prompt(3 + 4 * n, n) for n in range(num_chains)], []
    for turn in range(num_turns):
        requests = [
            (each, SamplingParams(max_tokens=3 + (n + turn) % 4, seed=10 * turn + n, **KINDS[n % len(KINDS)]))
            for n, each in enumerate(tokens)
        ]
        results = generate(engine, requests)
        branches = [
            ([*each, *result.token_ids[:2]], SamplingParams(max_tokens=4, seed=n))
            for n, (each, result) in enumerate(zip(tokens, results, strict=True))
        ]
        found += results + generate(engine, branches)
        tokens = [
            [*each, *result.token_ids, *prompt(1 + n % 3, turn)][:50]
            for n, (each, result) in enumerate(zip(tokens, results, strict=True))
        ]
    return found
