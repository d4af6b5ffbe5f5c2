"""Lets the gated MLPs of a Hugging Face model run tile by tile on a CPU."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from aepo_lightning.ops.gated_mlp import gated_mlp

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""Of last hidden states. Rounding makes less of float32, a multiplier that is left out more."""
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

    Values are the same up to rounding, or all modules stay as they are: layers that run more than once, or multiply
    something in between, show in a few tokens that are computed in both ways. On other devices than CPUs, and under
    autocast, each runs as before. Parameters and their names stay; what is put into the place of a projection later is
    not seen.

    Args:
        model: Any model.

    Returns:
        What was found.
    """
    found = [(name, module) for name, module in model.named_modules() if _is_gated_mlp(module)]
    tiled = TiledMLPs(len(found))
    if not found:
        return tiled
    last = f"model.layers.{model.config.get_text_config().num_hidden_layers - 1}.mlp"
    expected = _trial(model, tiled)
    for name, module in found:
        module.forward = _tiled(module, tiled, name == last)
    if not torch.allclose(_trial(model, tiled), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        logger.info("The MLPs of %s are more than gated and run as they are.", type(model).__name__)
        for _, module in found:
            del module.forward
        tiled.num_found = 0
    return tiled


@torch.no_grad()
def _trial(model: PreTrainedModel, tiled: TiledMLPs) -> Float[Tensor, " hidden"]:
    """Return the last hidden state of the last of four tokens, the only one that the last layer must compute."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    with tiled.last_layer_at(ids == 3):
        states: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, -1].float()


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
