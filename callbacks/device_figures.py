"""What a process and its GPU use: memory, and how much of what the GPU could compute."""

import os
from pathlib import Path

import torch
from lightning.fabric.utilities.throughput import get_available_flops

GIB = 2.0**30
_STATM = Path("/proc/self/statm")
"""Of this process, in pages: its size, then what of it is in memory. Linux has it."""


def host_memory_gib() -> dict[str, float]:
    """Return what of this process is in memory, under the name that is logged; nothing where the system does not say.

    Processes of tools are not in it.
    """
    if not _STATM.exists():
        return {}
    pages = int(_STATM.read_text(encoding="ascii").split()[1])
    return {"memory/host_gib": pages * os.sysconf("SC_PAGE_SIZE") / GIB}


def gpu_memory_gib(device: torch.device) -> dict[str, float]:
    """Return the most that tensors took on a GPU since the start, under the name that is logged; nothing on a CPU."""
    return {"memory/gpu_gib": torch.cuda.max_memory_allocated(device) / GIB} if device.type == "cuda" else {}


def flops_per_token(module: torch.nn.Module) -> int:
    """Return the floating-point operations of forward and backward pass over one token, without those of attention.

    A weight is multiplied and added in the forward pass and for the gradient of what it reads; if it is trained, for
    its own gradient as well.
    """
    return sum((6 if parameter.requires_grad else 4) * parameter.numel() for parameter in module.parameters())


def model_flops_utilization(
    flops_per_s: float, device: torch.device, dtype: torch.dtype, num_devices: int
) -> dict[str, float]:
    """Return the share of the GPUs' peak that the update used (MFU), under the name that is logged.

    Args:
        flops_per_s: Floating-point operations per second, of all GPUs.
        device: One of them; they are alike.
        dtype: Type in which matrices are multiplied. The peak is that of Lightning's table for it.
        num_devices: How many they are.

    Returns:
        Nothing on a CPU, and for GPUs that the table does not have.
    """
    peak = get_available_flops(device, dtype) if device.type == "cuda" else None
    return {"throughput/update_mfu": flops_per_s / (peak * num_devices)} if peak else {}
