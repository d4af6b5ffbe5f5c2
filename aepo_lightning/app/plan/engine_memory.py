"""What the engine in the trainer's process does with its share of each device."""

from dataclasses import dataclass

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import BF16, GIB, ModelSize


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes of one device."""

    share_bytes: int
    weight_bytes: int
    """bf16 weights while awake."""
    asleep_bytes: int
    """What the engine holds during the update."""
    kv_bytes_per_token: int
    kv_tokens: int
    """Tokens whose keys and values fit into one copy of the engine; 0 if the weights alone fill its share."""


def engine_memory(size: ModelSize, settings: PlanInput) -> EngineMemory:
    """Divide the engine's share of one device into weights, workspace and key-value cache."""
    share = round(settings.engine_memory_fraction * settings.gpu_memory_gib * GIB)
    weights = -(-BF16 * size.num_parameters // settings.engine_tensor_parallel)
    per_token = size.kv_bytes_per_token(settings.engine_tensor_parallel)
    free = share - weights - round(settings.engine_workspace_gib * GIB)
    return EngineMemory(
        share_bytes=share,
        weight_bytes=weights,
        asleep_bytes=0 if settings.engine_sleeps else share,
        kv_bytes_per_token=per_token,
        kv_tokens=max(free, 0) // per_token,
    )
