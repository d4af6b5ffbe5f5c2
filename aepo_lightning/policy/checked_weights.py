"""Weights against the model that they are for: names and shapes."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.errors import EngineError


def checked_weights(skeleton: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield a copy of each weight once, under the name that the architecture gives it first.

    Args:
        skeleton: A model of the architecture; only names and shapes are read.
        weights: By Hugging Face names; tied weights may come under either name, or both.

    Raises:
        EngineError: If a name is unknown, a shape differs or, at the end, a weight is missing.
    """
    own = dict(skeleton.named_parameters(remove_duplicate=False))
    missing = {id(parameter): name for name, parameter in skeleton.named_parameters()}
    for name, tensor in weights:
        if name not in own:
            raise EngineError(f"The engine's model has no weight named {name!r}. Publish the same architecture.")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(own[name].shape)}, but got {tuple(tensor.shape)}"
            raise EngineError(f"Weight {name!r} must have shape {shapes}. Publish the same architecture.")
        if first_name := missing.pop(id(own[name]), None):
            # vLLM keeps tensors until their layer is complete; what a sharded trainer yields is valid for less long.
            yield first_name, tensor.detach().clone()
    if missing:
        some = min(missing.values())
        raise EngineError(f"{len(missing)} weights were not published, {some!r} among them. Publish all of them.")


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
