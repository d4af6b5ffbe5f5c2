"""The weights of a network, gathered unit by unit: as trained, without adapter, or as low-rank updates."""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.ops.low_rank import merge_low_rank
from aepo_lightning.policy.lora import adapted_layers, factors, is_adapter, plain_name, scale_of
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.fsdp1 import fsdp1_named_weights, is_fsdp1
from aepo_lightning.policy.sharding.fsdp2 import reshard


def named_weights(network: PolicyNetwork) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight once, whole, under its Hugging Face name, with an adapter merged into it.

    Under FSDP2 this is collective: every rank must iterate to the end. One unit is gathered at a time and freed before
    the next, so no rank holds more than the largest unit on top of its shard. Tied weights come once. Copy what you
    need before asking for the next weight.
    """
    for name, weight, update in _gathered(network):
        yield name, weight if update is None else _merge(weight, update)


def base_weights(network: PolicyNetwork) -> Iterator[tuple[str, Tensor]]:
    """Yield what `named_weights` does, without the adapter."""
    return ((name, weight) for name, weight, _ in _gathered(network))


def trained_weights(network: PolicyNetwork) -> Iterator[tuple[str, Tensor]]:
    """Yield what `named_weights` does, in the precision that the optimiser updates, one weight at a time."""
    if is_fsdp1(network):
        yield from fsdp1_named_weights(network)
        return
    reshard(network)
    layers = adapted_layers(network.model)
    for name, parameter in network.model.named_parameters():
        if not is_adapter(name):
            plain = plain_name(name)
            layer = layers.get(plain.removesuffix(".weight"))
            whole = _whole(parameter)
            yield plain, whole if layer is None else _merge(whole, _update(plain, layer))


def low_rank_updates(network: PolicyNetwork) -> Iterator[LowRankUpdate]:
    """Yield what the adapter adds to each adapted weight. Under FSDP2 collective; nothing else is gathered."""
    reshard(network)
    for name, layer in adapted_layers(network.model).items():
        yield _update(f"{name}.weight", layer)


def _gathered(network: PolicyNetwork) -> Iterator[tuple[str, Tensor, LowRankUpdate | None]]:
    """Yield each weight as the forward pass has it, and what the adapter adds to it."""
    if is_fsdp1(network):
        yield from ((name, weight, None) for name, weight in fsdp1_named_weights(network))
        return
    layers = {f"{name}.weight": layer for name, layer in adapted_layers(network.model).items()}
    if not isinstance(network, FSDPModule):
        for name, parameter in network.model.named_parameters():
            if not is_adapter(name):
                layer = layers.get(plain := plain_name(name))
                yield plain, parameter.detach(), None if layer is None else _update(plain, layer)
        return
    reshard(network)
    seen: set[int] = set()
    for unit_name, unit in network.named_modules():
        if isinstance(unit, FSDPModule):
            own = [_plain(name) for name, _ in _own_parameters(cast(nn.Module, unit), unit_name)]
            updates = {name: _update(name, layers[name]) for name in own if name in layers}
            unit.unshard()
            for name, weight in _own_parameters(cast(nn.Module, unit), unit_name):
                if id(weight) not in seen and not is_adapter(name):
                    seen.add(id(weight))
                    yield _plain(name), weight.detach(), updates.get(_plain(name))
            unit.reshard()


def _plain(name: str) -> str:
    return plain_name(name.removeprefix("model."))


def _own_parameters(unit: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a unit without those of units nested in it."""
    for name, parameter in unit.named_parameters(prefix=prefix, recurse=False):
        yield name, parameter
    for name, child in unit.named_children():
        if not isinstance(child, FSDPModule):
            yield from _own_parameters(child, f"{prefix}.{name}" if prefix else name)


def _update(name: str, layer: nn.Module) -> LowRankUpdate:
    down, up = factors(layer)
    return LowRankUpdate(name=name, down=_whole(down), up=_whole(up), scale=scale_of(layer))


def _merge(weight: Tensor, update: LowRankUpdate) -> Tensor:
    return merge_low_rank(weight, update.down, update.up, update.scale)


def _whole(parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return parameter.detach()
    # Shards that were moved to the host are gathered where the ranks' communication runs.
    shard = cast(DTensor, parameter.detach().to(parameter.device_mesh.device_type))
    return shard.full_tensor()
