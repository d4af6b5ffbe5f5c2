"""The plan of an update against what torch's allocator gives out, and weights published to an engine on the device."""

from collections.abc import Mapping
from typing import Any

import torch

from aepo_lightning.engines import TransformersEngine
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.publish import publish
from benchmarks.plan import GOAL, Comparison, make_settings
from benchmarks.support.gpu_case import CaseReport, Setting
from benchmarks.support.gpu_models import architecture, build_model, peak_gib, seconds, significant
from benchmarks.support.measured_update import RandomPolicy, measure, measure_on_gpu, measure_update

PLANS: Mapping[str, Mapping[str, Any]] = {
    "fsdp2 checkpointed": {},
    "fsdp2 all saved": {"is_checkpointed": False},
    "one process bf16 weights": {"sharding": "none", "weight_bytes": 2},
    "one process fp32 weights": {"sharding": "none", "weight_bytes": 4},
}
NUM_LAYERS = 8
"""Of Qwen3-0.6B: enough for every moment of the update."""
MICRO_BATCH = 16384


def compare_plan(setting: Setting, report: CaseReport, name: str) -> None:
    """Carry one update out and compare its peak with the plan's."""
    fields = architecture("0.6B", is_dry=setting.is_dry, num_hidden_layers=NUM_LAYERS)
    length = 128 if setting.is_dry else 4096
    settings = make_settings(
        1,
        architecture=fields,
        max_prompt_tokens=length // 4,
        max_response_tokens=length - length // 4,
        micro_batch_tokens=2 * length if setting.is_dry else MICRO_BATCH,
        logprob_chunk_tokens=1024,
        is_gpu=setting.device == "cuda",
        **PLANS[name],
    )
    if settings.is_sharded and setting.device == "cuda":
        measured = measure_on_gpu(settings)
    elif settings.is_sharded:
        measured = measure(settings)
    else:
        measured = measure_update(settings, None, setting.device)
    found = Comparison(name=name, settings=settings, measured=measured)
    difference = significant(found.difference)
    report.add(
        {
            "measured_mib": round(measured.peak_bytes / 2**20, 1),
            "planned_mib": round(found.planned_bytes / 2**20, 1),
            "difference": difference,
            "measured_parts_mib": {part: round(size / 2**20, 1) for part, size in measured.parts.items()},
            "planned_parts_mib": {part: round(size / 2**20, 1) for part, size in found.planned_parts.items()},
        },
        {f"plan, {name}": (abs(difference), "<=", GOAL)} if not setting.is_dry else {},
    )


def publish_weights(setting: Setting, report: CaseReport, shape: str, dtype: torch.dtype) -> None:
    """Publish a network to an engine that has a copy in bfloat16 on the same device."""
    fields = architecture(shape, is_dry=setting.is_dry)
    network = PolicyNetwork(build_model(fields, dtype, setting.device), chunk_size=256)
    policy = RandomPolicy(architecture=fields, dtype=torch.bfloat16, device=setting.device)
    engine = TransformersEngine(policy, max_num_seqs=4, max_model_len=64, max_prefill_tokens=64, device=setting.device)
    versions = iter(range(1_000_000))
    took = seconds(lambda: publish(network, engine, next(versions)), setting.device, 2 if setting.is_dry else 5)
    num_bytes = sum(parameter.nbytes for parameter in network.parameters())
    report.add(
        {
            "weights_gb": significant(num_bytes / 1e9),
            "publish_s": significant(took),
            "read_gb_per_s": significant(num_bytes / 1e9 / took),
            "peak_gib": peak_gib(setting.device),
        }
    )
