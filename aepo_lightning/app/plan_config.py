"""From a composed configuration to the input of a plan."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.memory import GIB, model_size
from aepo_lightning.app.plan_input import PlanInput
from aepo_lightning.errors import ConfigError

_GPU_MEMORY_GIB = 80.0


def plan_input(cfg: DictConfig) -> PlanInput:
    """Read what decides memory and batch arithmetic; nothing is built or loaded.

    Raises:
        ConfigError: If the model's architecture is not written in the configuration.
    """
    model = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(model, dict), "a model is a mapping"
    architecture: dict[str, Any] = dict(model.get("architecture") or {})
    if not architecture:
        raise ConfigError("`plan=true` needs `model.architecture`, but it is empty. Copy the model's config there.")
    architecture.setdefault("vocab_size", 512)
    settings = cfg.rollout.settings
    return PlanInput(
        architecture=architecture,
        num_gpus=int(cfg.trainer.devices) * int(cfg.trainer.num_nodes),
        gpu_memory_gib=_GPU_MEMORY_GIB,
        num_iterations=cfg.trainer.max_epochs,
        questions_per_iteration=cfg.data.questions_per_iteration,
        group_size=settings.budget,
        questions_per_step=cfg.experience.questions_per_step,
        max_prompt_tokens=cfg.engine.max_model_len - settings.max_response_tokens,
        max_response_tokens=settings.max_response_tokens,
        micro_batch_tokens=cfg.experience.max_tokens_per_micro_batch,
        is_checkpointed=cfg.module.gradient_checkpointing,
        logprob_chunk_tokens=cfg.module.logprob_chunk_size,
        has_reference=cfg.algorithm.kl_penalty.coefficient > 0,
        is_gradient_sync_deferred=cfg.module.defer_gradient_sync,
        **_engine_share(cfg, architecture),
    )


def _engine_share(cfg: DictConfig, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine claims of a device: vLLM a set share while awake, the embedded one its copy always.

    Servers have devices of their own.
    """
    if "endpoints" in cfg.engine:
        return {"engine_memory_fraction": 0.0, "engine_sleeps": False, "engine_workspace_gib": 0.0}
    if "gpu_memory_utilization" in cfg.engine:
        return {"engine_memory_fraction": cfg.engine.gpu_memory_utilization, "engine_sleeps": True}
    size = model_size(architecture)
    num_slots = 2 * cfg.engine.max_num_seqs
    # float32 is twice the two bytes that the plan counts for weights and cache.
    held = 4 * size.num_parameters + 2 * size.kv_bytes_per_token(1) * num_slots * cfg.engine.max_model_len
    return {
        "engine_memory_fraction": min(1.0, held / GIB / _GPU_MEMORY_GIB),
        "engine_sleeps": False,
        "engine_workspace_gib": 0.0,
    }
