"""Weights against the model that they are for: names and shapes."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.errors import AepoError


def checked_weights(
    model: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]],
    error: type[AepoError],
    *,
    is_partial: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight once, under the name that the architecture gives it first.

    Args:
        model: Of the architecture; only names and shapes are read, so it may be on the meta device.
        weights: By Hugging Face names; tied weights may come under either name, or both.
        error: What is raised; that of the boundary that the weights cross.
        is_partial: Whether some weights may be missing.

    Raises:
        AepoError: `error`, if a name is unknown, a shape differs or, at the end, a weight is missing.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    missing = {id(parameter): name for name, parameter in model.named_parameters()}
    architecture = type(model).__name__
    for name, tensor in weights:
        if name not in own:
            raise error(f"{architecture} has no weight named {name!r}. Give weights of the same architecture.")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(own[name].shape)}, but got {tuple(tensor.shape)}"
            raise error(f"Weight {name!r} must have shape {shapes}. Give weights of the same architecture.")
        if first_name := missing.pop(id(own[name]), None):
            yield first_name, tensor
    if missing and not is_partial:
        raise error(
            f"All weights of {architecture} must come, but {len(missing)} are missing, {min(missing.values())!r} among "
            "them. Give all of them."
        )


def copies(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield copies, for readers that keep tensors longer than what a sharded trainer yields is valid."""
    return ((name, tensor.detach().clone()) for name, tensor in weights)


@torch.no_grad()
def copy_weights(
    model: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]],
    error: type[AepoError],
    *,
    is_partial: bool = False,
) -> None:
    """Copy weights into a model, with the arguments of `checked_weights`.

    Raises:
        AepoError: As `checked_weights`. The weights before the one that is wrong are then in place.
    """
    own = dict(model.named_parameters())
    for name, tensor in checked_weights(model, weights, error, is_partial=is_partial):
        own[name].copy_(tensor)
