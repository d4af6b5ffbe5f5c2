"""Lets the gated MLPs of a Hugging Face model run tile by tile on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from aepo_lightning.ops.gated_mlp import gated_mlp

_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(slots=True)
class TiledMLPs:
    """The gated MLPs of a model that run tile by tile."""

    num_found: int = 0
    _needed_of_last: Bool[Tensor, "batch seq"] | None = None

    @contextmanager
    def last_layer_at(self, is_needed: Bool[Tensor, "batch seq"]) -> Iterator[None]:
        """Have the MLP of the last layer compute some positions only, while the block runs.

        The last hidden states of the other positions are then wrong. No other position sees them.
        """
        self._needed_of_last = is_needed
        try:
            yield
        finally:
            self._needed_of_last = None

    def needed(self, is_last: bool) -> Bool[Tensor, "batch seq"] | None:
        """Return which positions a layer computes; None if all."""
        return self._needed_of_last if is_last else None


def tile_gated_mlps(model: PreTrainedModel) -> TiledMLPs:
    """Replace the `forward` of every gated MLP with silu and without biases, as Llama and Qwen have them.

    Values are the same up to rounding. On other devices than CPUs, and under autocast, each runs as before. Parameters
    and their names stay; what is put into the place of a projection later is not seen.

    Args:
        model: Any model.

    Returns:
        What was found.
    """
    found = [(name, module) for name, module in model.named_modules() if _is_gated_mlp(module)]
    tiled = TiledMLPs(len(found))
    last = f"model.layers.{model.config.num_hidden_layers - 1}.mlp"
    for name, module in found:
        module.forward = _tiled(module, tiled, name == last)
    return tiled


def _is_gated_mlp(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    if set(parts) != _PARTS or not isinstance(parts.pop("act_fn"), (SiLUActivation, nn.SiLU)):
        return False
    return all(type(part) is nn.Linear and part.bias is None for part in parts.values())


def _tiled(module: nn.Module, tiled: TiledMLPs, is_last: bool) -> Callable[[Tensor], Tensor]:
    plain = module.forward
    weights = [module.get_submodule(name) for name in ("gate_proj", "up_proj", "down_proj")]

    def forward(hidden: Tensor) -> Tensor:
        if hidden.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            result: Tensor = plain(hidden)
            return result
        gate, up, down = (part.get_parameter("weight") for part in weights)
        return gated_mlp(hidden, gate, up, down, tiled.needed(is_last))

    return forward
