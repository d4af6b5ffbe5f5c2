"""Copying published weights into a Hugging Face model."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.errors import EngineError


@torch.no_grad()
def copy_weights(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Copy weights by their Hugging Face names and return the names of those that did not come, sorted.

    Raises:
        EngineError: If a name is unknown or a shape differs. The weights before it are then in place.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    missing = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, tensor in weights:
        if name not in own:
            raise EngineError(f"The engine's model has no weight named {name!r}. Publish the same architecture.")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(own[name].shape)}, but got {tuple(tensor.shape)}"
            raise EngineError(f"Weight {name!r} must have shape {shapes}. Publish the same architecture.")
        own[name].copy_(tensor)
        missing.pop(id(own[name]), None)
    return sorted(missing.values())
