"""Tokens per second of the embedded engine, with its decoding steps launched kernel by kernel and as CUDA graphs."""

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines import TransformersEngine
from benchmarks.support.gpu_case import CaseReport, Setting
from benchmarks.support.gpu_models import SHAPES, architecture, peak_gib, significant, synchronize
from benchmarks.support.measured_update import RandomPolicy

SMOLLM2_135M: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
MODES: Mapping[str, tuple[str | bool, int]] = {"eager": (False, 32), "graphs": ("auto", 160)}
"""The setting `cuda_graphs`, and how many tokens are generated: single launches take many times as long for each."""
BATCHES = (256, 16)
PROMPT_TOKENS = 128


def measure_engine(setting: Setting, report: CaseReport, shape: str) -> None:
    """Generate with random weights of a shape, in bfloat16, at both batch sizes and in both modes."""
    dry = architecture("0.6B", is_dry=True)
    known = SMOLLM2_135M if shape not in SHAPES else architecture(shape, is_dry=False)
    policy = RandomPolicy(architecture=dry if setting.is_dry else known, dtype=torch.bfloat16, device=setting.device)
    rates: dict[tuple[str, int], float] = {}
    for mode, (cuda_graphs, num_new) in MODES.items():
        engine = TransformersEngine(
            policy,
            max_num_seqs=max(BATCHES),
            num_slots=max(BATCHES),
            max_model_len=PROMPT_TOKENS + num_new,
            device=setting.device,
            cuda_graphs=cuda_graphs,
        )
        for batch in BATCHES:
            size = (min(batch, 4), 8, 3) if setting.is_dry else (batch, PROMPT_TOKENS, num_new)
            first = _generate(engine, *size, salt=1, device=setting.device)  # captures, compiles, grows
            took = _generate(engine, *size, salt=2, device=setting.device)
            rates[mode, batch] = size[0] * size[2] / took
            report.add(
                {
                    f"{mode}, batch {batch}": {
                        "tokens_per_s": significant(rates[mode, batch]),
                        "ms_per_step": significant(1e3 * took / size[2]),
                        "first_time_s": significant(first),
                        "peak_gib": peak_gib(setting.device),
                    }
                }
            )
        engine.close()
        del engine
    speedup = {f"graphs over eager, batch {b}": significant(rates["graphs", b] / rates["eager", b]) for b in BATCHES}
    report.add(speedup)


def _generate(
    engine: TransformersEngine, num_requests: int, num_prompt: int, num_new: int, *, salt: int, device: str
) -> float:
    """Return the seconds of one generation by all requests at once, their prompts included."""
    prompts = [[3 + (7 * n + 13 * r + 1009 * salt) % 4000 for n in range(num_prompt)] for r in range(num_requests)]

    async def run() -> int:
        params = [SamplingParams(max_tokens=num_new, seed=1000 * salt + row) for row in range(num_requests)]
        found = await asyncio.gather(*map(engine.generate, prompts, params))
        return sum(len(generation.token_ids) for generation in found)

    synchronize(device)
    start = perf_counter()
    num_tokens = asyncio.run(run())
    synchronize(device)
    # Random weights sample the end of a message once in a while.
    return (perf_counter() - start) * num_requests * num_new / num_tokens
