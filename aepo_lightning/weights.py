"""Publishing the trainer's weights to an engine, sharded or not."""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from aepo_lightning.network import PolicyNetwork
from aepo_lightning.protocols import Engine


def named_weights(network: PolicyNetwork) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight once, whole, under its Hugging Face name.

    Under FSDP2 this is collective: every rank must iterate to the end. One unit is gathered at a time and freed before
    the next, so no rank holds more than the largest unit on top of its shard. Tied weights come once. Copy what you
    need before asking for the next weight.
    """
    if not isinstance(network, FSDPModule):
        yield from ((name, weight.detach()) for name, weight in network.model.named_parameters())
        return
    network.reshard()  # a forward pass without backward leaves the root unit gathered
    seen: set[int] = set()
    for unit_name, unit in network.named_modules():
        if isinstance(unit, FSDPModule):
            unit.unshard()
            for name, weight in _own_parameters(cast(nn.Module, unit), unit_name):
                if id(weight) not in seen:
                    seen.add(id(weight))
                    yield name.removeprefix("model."), weight.detach()
            unit.reshard()


def _own_parameters(unit: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a unit without those of units nested in it."""
    for name, parameter in unit.named_parameters(prefix=prefix, recurse=False):
        yield name, parameter
    for name, child in unit.named_children():
        if not isinstance(child, FSDPModule):
            yield from _own_parameters(child, f"{prefix}.{name}" if prefix else name)


def publish(network: PolicyNetwork, engine: Engine, version: int) -> None:
    """Give the engine the weights of the network.

    Args:
        network: The policy that is being trained. Collective under FSDP2.
        engine: Receives the weights and forgets its cached prefixes.
        version: Number of optimiser steps that the weights have seen.
    """
    engine.load_weights(named_weights(network), version)
