"""The engine's own copy of a model: where it lies and in which precision."""

import os
from typing import Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.fused_norms import fuse_norms

_GPU_CACHE_GIB, _CPU_CACHE_GIB = 16.0, 2.0
"""Of keys and values, where no bound is chosen: a CPU shares its memory with the update and everything else."""


def choose_device(device: str) -> torch.device:
    """Return the device of an engine.

    Args:
        device: `auto` is CUDA where there is some, else the CPU. CUDA without a number is the GPU of this rank.

    Raises:
        ConfigError: If there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"`device` must be auto or a device of torch, but got {device!r}. Use cpu or cuda."
        ) from error
    if chosen.type != "cuda":
        return chosen
    if not torch.cuda.is_available():
        raise ConfigError(f"`device` must be one of this machine, but got {device!r} and there is no GPU. Use cpu.")
    if chosen.index is not None:
        return chosen
    # Engines are built before Lightning gives each process its GPU.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def choose_dtype(dtype: str, device: torch.device, policy: PolicySource) -> torch.dtype | None:
    """Return the precision of an engine's weights, keys and values; None for that of the policy.

    Args:
        dtype: The name of a floating-point type, or `auto`: bfloat16 on CUDA for weights that are read from files, else
            the policy's.
        device: Of the engine.
        policy: Whose weights they are.

    Raises:
        ConfigError: If torch has no such type.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and policy.find_weights() is not None else None
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"`dtype` must be auto or name a floating-point type, but got {dtype!r}. Use bfloat16.")
    return found


def choose_cache_gib(max_cache_gib: float | Literal["auto"], is_gpu: bool) -> float:
    """Return how much memory keys and values may take, in GiB.

    Args:
        max_cache_gib: The number itself, or `auto`.
        is_gpu: Whether the engine computes on a GPU, whose memory is its own.
    """
    if max_cache_gib == "auto":
        return _GPU_CACHE_GIB if is_gpu else _CPU_CACHE_GIB
    return float(max_cache_gib)


def build_own_model(policy: PolicySource, device: torch.device, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return a model for generation only.

    Args:
        policy: Where it comes from.
        device: Where to put it.
        dtype: Of its weights; None leaves them as they are. Buffers stay, such as the frequencies of rotary embeddings,
            which a 16-bit type would ruin.
    """
    model = policy.build_model()
    module = cast(nn.Module, model)  # its own methods are untyped
    if dtype is not None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
    module.to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        fuse_norms(module)
    return model
