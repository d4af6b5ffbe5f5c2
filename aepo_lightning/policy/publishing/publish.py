"""Publishing the trainer's weights to an engine, sharded or not, and keeping what was published."""

import itertools
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from aepo_lightning.contracts.engine import AdapterEngine, Engine, LowRankUpdate
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import DataError
from aepo_lightning.ops.low_rank import merge_low_rank
from aepo_lightning.policy.lora import adapted_layers, factors, is_adapter, plain_name, scale_of
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.fsdp1 import fsdp1_named_weights, is_fsdp1
from aepo_lightning.policy.sharding.fsdp2 import reshard

_count = itertools.count()
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tells networks apart, also from those that lived in the same memory before."""


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


def publish(network: PolicyNetwork, engine: Engine, version: int) -> None:
    """Give the engine the weights of the network; of one with an adapter, only the adapter if the engine has the rest.

    Args:
        network: The policy that is being trained. Collective under FSDP2.
        engine: Receives the weights and forgets its cached prefixes.
        version: Number of optimiser steps that the weights have seen.
    """
    adapted = [f"{name}.weight" for name in adapted_layers(network.model)]
    if not adapted or not isinstance(engine, AdapterEngine) or engine.base is None:
        engine.load_weights(named_weights(network), version)
        return
    base = _base_name(network)
    if all_reduce([float(engine.base != base)], "max")[0]:  # gathering is collective: one rank's need is everyone's
        engine.load_base(base_weights(network), adapted, base)
    engine.load_adapter(low_rank_updates(network), version)


def _base_name(network: PolicyNetwork) -> str:
    """Return a name of the frozen weights that changes whenever they may have: they were replaced or written to."""
    frozen = [p.detach() for name, p in network.named_parameters() if not is_adapter(name)]
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in frozen]
    number = _numbers.setdefault(network, next(_count))
    marks = [number, *((weight.data_ptr(), weight._version) for weight in local)]
    return blake2b(repr(marks).encode(), digest_size=8).hexdigest()


class WeightsArchive:
    """Published weights on disk, one file per version, so that rollouts made with them can be replayed."""

    def __init__(self, directory: str | Path, keep: int = -1) -> None:
        """Keep the settings.

        Args:
            directory: Where the files go.
            keep: How many of the newest versions stay; -1 keeps all, 0 writes none.

        Raises:
            ValueError: If `keep` is below -1.
        """
        if keep < -1:
            raise ValueError(f"`keep` must be -1 (all), 0 (none) or positive, but got {keep}.")
        self._directory = Path(directory)
        self._keep = keep

    def path(self, version: int) -> Path:
        """Return the file of one version."""
        return self._directory / f"{version:08d}.safetensors"

    def versions(self) -> list[int]:
        """Return the versions that are on disk, in order."""
        return sorted(int(path.stem) for path in self._directory.glob("*.safetensors") if path.stem.isdigit())

    def save(self, network: PolicyNetwork, version: int, is_writer: bool = True) -> None:
        """Write the weights of the network. Collective under FSDP2; only the rank that `is_writer` writes."""
        if self._keep == 0:
            return
        copies = {name: weight.cpu().clone() for name, weight in named_weights(network) if is_writer}
        if not is_writer:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self.path(version).with_suffix(".partial")
        save_file(copies, partial)
        os.replace(partial, self.path(version))
        for old in self.versions()[: -self._keep] if self._keep > 0 else ():
            self.path(old).unlink()

    def load(self, version: int) -> dict[str, torch.Tensor]:
        """Read one version by Hugging Face names; tied weights come once.

        Raises:
            DataError: If it is not there.
        """
        if not self.path(version).is_file():
            raise DataError(f"{self.path(version)} must exist, but the versions kept are {self.versions()}.")
        return dict(load_file(self.path(version)))
