"""An adapter as tensors of a safetensors file, on its way to servers that have the weights below it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.ops.low_rank import merge_low_rank

_DOWN, _UP, _SCALE = ".down", ".up", ".scale"


def packed_updates(updates: Iterable[LowRankUpdate]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a file must hold, named after the weights that they change."""
    for update in updates:
        yield update.name + _DOWN, update.down
        yield update.name + _UP, update.up
        yield update.name + _SCALE, torch.tensor(update.scale, dtype=torch.float64)


def merged_with_file(
    weights: Mapping[str, Tensor], path: str | Path, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights with the adapter in a file merged into those that it changes.

    Args:
        weights: By Hugging Face names; any part of the model's.
        path: A file of `packed_updates`.
        device: Where to merge.
    """
    with safe_open(path, framework="pt") as file:
        changed = {key.removesuffix(_SCALE) for key in file.keys() if key.endswith(_SCALE)}  # noqa: SIM118
        for name, weight in weights.items():
            if name not in changed:
                yield name, weight
                continue
            down, up = (file.get_tensor(name + part).to(device) for part in (_DOWN, _UP))
            yield name, merge_low_rank(weight.to(device), down, up, float(file.get_tensor(name + _SCALE)))
