"""Publishing the trainer's weights to an engine, sharded or not, and keeping what was published."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from aepo_lightning.errors import DataError
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
