"""The embedded engine at work under a memory meter: every slot filled, every pass as large as it may be."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from aepo_lightning.contracts.generation import SamplingParams
from aepo_lightning.engines.transformers.engine import TransformersEngine
from benchmarks.support.measured_update import RandomPolicy
from benchmarks.support.memory_meter import MemoryMeter

NEW_TOKENS = 3
LOAD_KEYS = ("max_num_seqs", "max_model_len", "max_prefill_tokens")
"""Settings of a load that are keys of the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """An engine and what it is asked for."""

    architecture: Mapping[str, Any]
    max_num_seqs: int
    max_model_len: int
    max_prefill_tokens: int
    top_p: float = 1.0


def measure_engine(load: EngineLoad) -> int:
    """Return the largest number of bytes that exist while as many requests run as may, to the greatest length."""
    meter = MemoryMeter(nn.Module())
    with meter:
        engine = TransformersEngine(
            RandomPolicy(architecture=load.architecture),
            **{name: getattr(load, name) for name in LOAD_KEYS},
        )
        meter.reset_peak()
        asyncio.run(_generate(engine, load))
    return meter.peak_bytes


async def _generate(engine: TransformersEngine, load: EngineLoad) -> None:
    length, vocab_size = load.max_model_len - NEW_TOKENS, load.architecture["vocab_size"]
    prompts = [[(7 * row + place) % vocab_size for place in range(length)] for row in range(load.max_num_seqs)]
    params = SamplingParams(max_tokens=NEW_TOKENS, top_p=load.top_p)
    await asyncio.gather(*(engine.generate(prompt, params) for prompt in prompts))
