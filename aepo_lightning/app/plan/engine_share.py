"""From a composed configuration to what its engine claims of each device."""

from typing import Any

from omegaconf import DictConfig

from aepo_lightning.app.devices import runs_on_gpus
from aepo_lightning.app.plan.engine_memory import embedded_workspace
from aepo_lightning.app.plan.input import ENGINE_WORKSPACE_GIB
from aepo_lightning.app.plan.model_size import BF16, FP32, GIB, ModelSize
from aepo_lightning.engines.transformers.own_model import choose_cache_gib
from aepo_lightning.engines.transformers.slot_cache import slots_within
from aepo_lightning.engines.transformers.static_decoding import static_length
from aepo_lightning.engines.vllm.launch import CPU_CACHE_BYTES
from aepo_lightning.errors import ConfigError

_ENGINES = ("TransformersEngine", "VLLMEngine", "VLLMServerEngine")
_NARROW = ("bfloat16", "float16", "half")


def engine_share(cfg: DictConfig, size: ModelSize) -> dict[str, Any]:
    """Return the fields of the plan's input that say what the engine claims. Servers have devices of their own.

    Raises:
        ConfigError: If the engine is none of this library, or its cache is bounded below one sequence.
    """
    kind = str(cfg.engine.get("_target_", "")).rpartition(".")[2]
    if kind == "TransformersEngine":
        return _embedded(cfg, size)
    if kind == "VLLMEngine":
        return _vllm(cfg, size)
    if kind == "VLLMServerEngine":
        return {"engine_memory_fraction": 0.0, "engine_sleeps": False, "engine_workspace_gib": 0.0}
    raise ConfigError(
        f"`plan=true` needs one of the engines {', '.join(_ENGINES)}, but `engine._target_` is "
        f"{cfg.engine.get('_target_')}. Plan with one of them."
    )


def _vllm(cfg: DictConfig, size: ModelSize) -> dict[str, Any]:
    """Return vLLM's share of a GPU, or its weights and cache where the size of the cache is set, as always on a CPU."""
    engine, is_gpu = cfg.engine, runs_on_gpus(cfg)
    width = FP32 if engine.dtype in ("float32", "float") else BF16
    cache = engine.kv_cache_memory_bytes or (0 if is_gpu else CPU_CACHE_BYTES)
    weights = -(-width * size.num_parameters // engine.tensor_parallel_size)
    return {
        "engine_memory_fraction": 0.0 if cache else engine.gpu_memory_utilization,
        "engine_share_bytes": weights + cache + round(ENGINE_WORKSPACE_GIB * GIB) if cache else 0,
        "engine_number_bytes": width,
        "engine_tensor_parallel": engine.tensor_parallel_size,
        "engine_sleeps": is_gpu,
        "engine_keeps_weights": is_gpu and engine.sleep_level == 1,
        "engine_workspace_gib": ENGINE_WORKSPACE_GIB,
    }


def _embedded(cfg: DictConfig, size: ModelSize) -> dict[str, Any]:
    """Return the embedded engine's own copy of the weights, its cache, and its workspace while it generates."""
    engine, is_gpu = cfg.engine, runs_on_gpus(cfg) and cfg.engine.device != "cpu"
    width = _embedded_bytes(cfg, is_gpu)
    length = static_length(engine.max_model_len) if is_gpu and engine.cuda_graphs else engine.max_model_len + 1
    slot_bytes = size.kv_bytes_per_token(1, width) * length
    wanted = engine.get("num_slots") or 2 * engine.max_num_seqs
    num_slots = slots_within(choose_cache_gib(engine.max_cache_gib, is_gpu), slot_bytes, length, wanted)
    num_seqs = min(engine.max_num_seqs, num_slots)
    sampling = cfg.rollout.sampling
    restricts = sampling.top_p < 1 or sampling.top_k > 0
    workspace = embedded_workspace(
        size, width, num_seqs, engine.max_model_len, engine.max_prefill_tokens, restricts=restricts
    )
    return {
        "engine_memory_fraction": 0.0,
        "engine_share_bytes": width * size.num_parameters + num_slots * slot_bytes + workspace,
        "engine_number_bytes": width,
        "engine_sleeps": False,
        "engine_workspace_gib": workspace / GIB,
    }


def _embedded_bytes(cfg: DictConfig, is_gpu: bool) -> int:
    """Return the bytes of each weight, key and value of the embedded engine."""
    if cfg.engine.dtype == "auto" and is_gpu and "name_or_path" in cfg.model:
        return BF16
    dtype = cfg.model.get("dtype", "float32") if cfg.engine.dtype == "auto" else cfg.engine.dtype
    return BF16 if dtype in _NARROW else FP32
