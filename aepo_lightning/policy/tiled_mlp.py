"""Lets the gated MLPs of a Hugging Face model run tile by tile on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from aepo_lightning.ops.gated_mlp import gated_mlp

_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def tile_gated_mlps(model: nn.Module) -> int:
    """Replace the `forward` of every gated MLP with silu and without biases, as Llama and Qwen have them.

    Values are the same up to rounding. On other devices than CPUs, and under autocast, each runs as before. Parameters
    and their names stay; what is put into the place of a projection later is not seen.

    Args:
        model: Any model.

    Returns:
        How many were found.
    """
    found = [module for module in model.modules() if _is_gated_mlp(module)]
    for module in found:
        module.forward = _tiled(module)
    return len(found)


def _is_gated_mlp(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    if set(parts) != _PARTS or not isinstance(parts.pop("act_fn"), (SiLUActivation, nn.SiLU)):
        return False
    return all(type(part) is nn.Linear and part.bias is None for part in parts.values())


def _tiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = module.forward
    weights = [module.get_submodule(name) for name in ("gate_proj", "up_proj", "down_proj")]

    def forward(hidden: Tensor) -> Tensor:
        if hidden.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            result: Tensor = plain(hidden)
            return result
        gate, up, down = (part.get_parameter("weight") for part in weights)
        return gated_mlp(hidden, gate, up, down)

    return forward
