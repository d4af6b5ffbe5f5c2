"""Lets the RMS norms of a Hugging Face model run in few passes on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aepo_lightning.ops.rms_norm import rms_norm

_KINDS = {"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
"""Those that multiply by their weight as it is; Gemma's, for one, adds 1 to it."""


def fuse_rms_norms(model: nn.Module) -> int:
    """Replace the `forward` of every RMS norm of Llama and Qwen.

    Values are the same up to rounding. On other devices than CPUs, in other precisions than float32, and under
    autocast, each runs as before. Parameters and their names stay.

    Args:
        model: Any model.

    Returns:
        How many were found.
    """
    found = [module for module in model.modules() if type(module).__name__ in _KINDS]
    for module in found:
        module.forward = _fused(module)
    return len(found)


def _fused(module: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = module.forward

    def forward(hidden_states: Tensor) -> Tensor:
        weight, eps = module.get_parameter("weight"), module.variance_epsilon
        is_float32 = hidden_states.dtype == weight.dtype == torch.float32
        if hidden_states.device.type != "cpu" or not is_float32 or torch.is_autocast_enabled("cpu"):
            result: Tensor = plain(hidden_states)
            return result
        assert isinstance(eps, float), "the classes above have it"
        return rms_norm(hidden_states, weight, eps)

    return forward
