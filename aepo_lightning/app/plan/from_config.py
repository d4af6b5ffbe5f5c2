"""From a composed configuration to the input of a plan."""

import math
import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from aepo_lightning.app.devices import runs_on_gpus
from aepo_lightning.app.plan.engine_share import engine_share
from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import GIB, ModelSize, model_size
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.logit_blocks import chunk_rows
from aepo_lightning.policy.source import PretrainedPolicy

_GPU_MEMORY_GIB = 80.0
_GPU_OVERHEAD_GIB = 2.0
"""CUDA context, communication buffers and fragmentation."""
_CPU_OVERHEAD_GIB = 1.0
"""The interpreter and its libraries."""
_STRATEGIES = {"ModelParallelStrategy": "fsdp2", "FSDPStrategy": "fsdp1", "DDPStrategy": "replicated"}


def plan_input(cfg: DictConfig) -> PlanInput:
    """Read what decides memory and batch arithmetic; nothing is built or loaded.

    Raises:
        ConfigError: If the model's architecture is neither in the configuration nor beside its weights, or a number has
            no meaning.
    """
    model = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(model, dict), "a model is a mapping"
    architecture = _architecture(model)
    size = model_size(architecture)
    sampling = cfg.rollout.sampling
    return PlanInput(
        architecture=architecture,
        is_pretrained="name_or_path" in model,
        weight_bytes=2 if model.get("dtype") in ("bfloat16", "float16") else 4,
        num_iterations=cfg.trainer.max_epochs,
        questions_per_iteration=cfg.data.questions_per_iteration,
        group_size=cfg.algorithm.budget,
        questions_per_step=cfg.experience.questions_per_step,
        num_epochs=cfg.experience.num_epochs,
        max_prompt_tokens=cfg.engine.max_model_len - sampling.max_response_tokens,
        max_response_tokens=sampling.max_response_tokens,
        micro_batch_tokens=cfg.experience.max_tokens_per_micro_batch,
        packing=cfg.experience.packing,
        has_reference=cfg.algorithm.kl_penalty.coefficient > 0,
        **_devices(cfg),
        **_update_options(cfg, size),
        **engine_share(cfg, size),
    )


def cold_start_input(cfg: DictConfig) -> PlanInput:
    """Read what decides memory and batch arithmetic of a cold start on conversations.

    A question of the plan stands for a conversation of `limits.max_length` tokens, all but one of them the assistant's,
    and an iteration for a pass over `expected_rows` of them, or over one batch where that is not said. There is no
    engine yet.

    Raises:
        ConfigError: As `plan_input`.
    """
    model, own = OmegaConf.to_container(cfg.model, resolve=True), cfg.coldstart
    assert isinstance(model, dict), "a model is a mapping"
    architecture = _architecture(model)
    size = model_size(architecture)
    longest = own.limits.max_length or cfg.engine.max_model_len
    module = {
        "is_checkpointed": own.gradient_checkpointing,
        "logprob_chunk_tokens": chunk_rows(own.logprob_chunk_size, size.vocab_size),
    }
    return PlanInput(
        architecture=architecture,
        is_pretrained="name_or_path" in model,
        weight_bytes=2 if model.get("dtype") in ("bfloat16", "float16") else 4,
        num_iterations=math.ceil(own.num_epochs),
        questions_per_iteration=max(own.expected_rows or 0, own.batch_size),
        group_size=1,
        questions_per_step=own.batch_size,
        max_prompt_tokens=1,
        max_response_tokens=longest - 1,
        micro_batch_tokens=own.max_tokens_per_micro_batch,
        packing=own.packing,
        engine_memory_fraction=0.0,
        engine_sleeps=False,
        engine_workspace_gib=0.0,
        **_devices(cfg),
        **(_update_options(cfg, size) | module),
    )


def _architecture(model: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the fields of the architecture: those written down, else those of the config.json beside the weights."""
    written = dict(model.get("architecture") or {})
    if written:
        return {"vocab_size": 512} | written
    if "name_or_path" not in model:
        raise ConfigError("`plan=true` needs `model.architecture`, but it is empty. Copy the model's config there.")
    fields: dict[str, Any] = PretrainedPolicy(model["name_or_path"]).config.to_diff_dict()
    return fields


def _devices(cfg: DictConfig) -> dict[str, Any]:
    """Return how many devices there are, of which kind, and how the strategy uses them."""
    per_node, nodes = _count("devices", cfg.trainer.devices), _count("num_nodes", cfg.trainer.num_nodes)
    is_gpu = runs_on_gpus(cfg)
    name = str(cfg.strategy.get("_target_", "")).rpartition(".")[2]
    return {
        "num_gpus": per_node * nodes,
        "gpus_per_node": per_node,
        "is_gpu": is_gpu,
        "gpu_memory_gib": _GPU_MEMORY_GIB if is_gpu else _physical_gib() / per_node,
        "overhead_gib": _GPU_OVERHEAD_GIB if is_gpu else _CPU_OVERHEAD_GIB,
        "sharding": _STRATEGIES.get(name, "none" if per_node * nodes == 1 else "replicated"),
    }


def _count(name: str, value: Any) -> int:
    number = len(value) if isinstance(value, ListConfig) else value
    if type(number) is not int or number < 1:
        raise ConfigError(f"`trainer.{name}` must be a positive number for a plan, but got {value!r}. Write how many.")
    return number


def _physical_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)


def _update_options(cfg: DictConfig, size: ModelSize) -> dict[str, Any]:
    """Return what the module does to save memory."""
    module = cfg.module
    return {
        "is_checkpointed": module.gradient_checkpointing,
        "is_mixed_precision": module.mixed_precision,
        "is_resharded_after_forward": module.reshard_after_forward,
        "is_cpu_offloaded": module.cpu_offload,
        "is_gradient_sync_deferred": module.defer_gradient_sync,
        "logprob_chunk_tokens": chunk_rows(module.logprob_chunk_size, size.vocab_size),
        "adapter_rank": 0 if module.adapter is None else module.adapter.rank,
        "adapter_targets": () if module.adapter is None else tuple(module.adapter.target_modules),
    }
