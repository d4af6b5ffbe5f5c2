"""From a composed configuration to the input of a plan."""

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from aepo_lightning.app.devices import runs_on_gpus
from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import BF16, GIB, model_size
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.source import PretrainedPolicy

_GPU_MEMORY_GIB = 80.0
_GPU_OVERHEAD_GIB = 2.0
"""CUDA context, communication buffers and fragmentation."""
_CPU_OVERHEAD_GIB = 1.0
"""The interpreter and its libraries."""
_SAMPLING_BYTES = 20
"""For each row and word of a captured decoding step, whose memory stays reserved: logits, log-probs and probabilities
in float32, their sums in float64."""
_STRATEGIES = {"ModelParallelStrategy": "fsdp2", "FSDPStrategy": "fsdp1", "DDPStrategy": "replicated"}
_ENGINES = {"TransformersEngine": "copy", "VLLMEngine": "share", "VLLMServerEngine": "servers"}
"""What each engine holds on the devices of the trainer, by the name of its class."""


def plan_input(cfg: DictConfig) -> PlanInput:
    """Read what decides memory and batch arithmetic; nothing is built or loaded.

    Raises:
        ConfigError: If the model's architecture is neither in the configuration nor beside its weights, or a number has
            no meaning.
    """
    model = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(model, dict), "a model is a mapping"
    architecture = _architecture(model)
    sampling = cfg.rollout.sampling
    devices = _devices(cfg)
    return PlanInput(
        architecture=architecture,
        is_pretrained="name_or_path" in model,
        weight_bytes=2 if model.get("dtype") in ("bfloat16", "float16") else 4,
        num_iterations=cfg.trainer.max_epochs,
        questions_per_iteration=cfg.data.questions_per_iteration,
        group_size=cfg.algorithm.budget,
        questions_per_step=cfg.experience.questions_per_step,
        max_prompt_tokens=cfg.engine.max_model_len - sampling.max_response_tokens,
        max_response_tokens=sampling.max_response_tokens,
        micro_batch_tokens=cfg.experience.max_tokens_per_micro_batch,
        packing=cfg.experience.packing,
        has_reference=cfg.algorithm.kl_penalty.coefficient > 0,
        **devices,
        **_update_options(cfg),
        **_engine_share(cfg, architecture, devices["gpu_memory_gib"]),
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


def _update_options(cfg: DictConfig) -> dict[str, Any]:
    """Return what the module does to save memory."""
    module = cfg.module
    return {
        "is_checkpointed": module.gradient_checkpointing,
        "is_mixed_precision": module.mixed_precision,
        "is_resharded_after_forward": module.reshard_after_forward,
        "is_cpu_offloaded": module.cpu_offload,
        "is_gradient_sync_deferred": module.defer_gradient_sync,
        "logprob_chunk_tokens": module.logprob_chunk_size,
        "adapter_rank": 0 if module.adapter is None else module.adapter.rank,
        "adapter_targets": () if module.adapter is None else tuple(module.adapter.target_modules),
    }


def _engine_share(cfg: DictConfig, architecture: Mapping[str, Any], memory_gib: float) -> dict[str, Any]:
    """Return what the engine claims of a device: vLLM a set share while awake, the embedded one its copy always.

    Servers have devices of their own.

    Raises:
        ConfigError: If the engine is none of this library.
    """
    kind = _ENGINES.get(str(cfg.engine.get("_target_", "")).rpartition(".")[2])
    if kind is None:
        raise ConfigError(
            f"`plan=true` needs one of the engines {', '.join(_ENGINES)}, but `engine._target_` is "
            f"{cfg.engine.get('_target_')}. Plan with one of them."
        )
    if kind == "servers":
        return {"engine_memory_fraction": 0.0, "engine_sleeps": False, "engine_workspace_gib": 0.0}
    if kind == "share":
        return {
            "engine_memory_fraction": cfg.engine.gpu_memory_utilization,
            "engine_tensor_parallel": cfg.engine.tensor_parallel_size,
            "engine_sleeps": True,
            "engine_keeps_weights": cfg.engine.sleep_level == 1,
        }
    size, number_bytes = model_size(architecture), _embedded_bytes(cfg)
    # The plan counts two bytes for each number of the cache.
    cache = size.kv_bytes_per_token(1) * number_bytes // BF16 * 2 * cfg.engine.max_num_seqs * cfg.engine.max_model_len
    workspace = _SAMPLING_BYTES * cfg.engine.max_num_seqs * architecture["vocab_size"] if _engine_is_on_gpu(cfg) else 0
    held = number_bytes * size.num_parameters + min(cache, cfg.engine.max_cache_gib * GIB) + workspace
    return {
        "engine_memory_fraction": min(1.0, held / GIB / memory_gib),
        "engine_sleeps": False,
        "engine_workspace_gib": workspace / GIB,
    }


def _engine_is_on_gpu(cfg: DictConfig) -> bool:
    return runs_on_gpus(cfg) and cfg.engine.device != "cpu"


def _embedded_bytes(cfg: DictConfig) -> int:
    """Return the bytes of each weight, key and value of the embedded engine."""
    if cfg.engine.dtype == "auto" and _engine_is_on_gpu(cfg) and "name_or_path" in cfg.model:
        return BF16
    dtype = cfg.model.get("dtype", "float32") if cfg.engine.dtype == "auto" else cfg.engine.dtype
    return BF16 if dtype in ("bfloat16", "float16") else 2 * BF16
