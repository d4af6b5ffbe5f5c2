"""The weights below an adapter, as an engine keeps them: as they were published, so that no rounding adds up."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.errors import EngineError
from aepo_lightning.ops.low_rank import merge_low_rank

_DOWN, _UP, _SCALE = ".down", ".up", ".scale"


class AdapterBase:
    """Copies of published weights, and what they are with an adapter."""

    def __init__(self, device: str | None = None) -> None:
        """Start empty.

        Args:
            device: Where copies are kept. None: where the trainer has them.
        """
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.name = ""
        """Of the base that is kept; empty while there is none."""
        self._weights: dict[str, Tensor] = {}
        self._adapted: frozenset[str] = frozenset()

    def keeping(
        self, weights: Iterable[tuple[str, Tensor]], adapted: Collection[str], name: str, *, all_weights: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """Pass weights on and keep a copy of those that adapters will change, or of all.

        Args:
            weights: By Hugging Face names.
            adapted: Names of those that adapters will change.
            name: Of this base.
            all_weights: Whether the others are kept as well.

        Raises:
            EngineError: If one of `adapted` was not among the weights.
        """
        self.clear()
        for key, weight in weights:
            if all_weights or key in adapted:
                self._weights[key] = torch.empty_like(weight, device=self._device).copy_(weight)
            yield key, weight
        if missing := sorted(set(adapted) - self._weights.keys()):
            raise EngineError(f"Adapters must change weights of the model, but it has no {missing[0]!r}.")
        self._adapted, self.name = frozenset(adapted), name

    def merged(self, updates: Iterable[LowRankUpdate]) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight that is kept, with its adapter merged into it where the adapter is.

        Raises:
            EngineError: If there is no base, or the updates are not one for each adapted weight.
        """
        if not self.name:
            raise EngineError("An adapter needs the weights below it. Publish them with `load_base` first.")
        found = {update.name: update for update in updates}
        if odd := sorted(found.keys() ^ self._adapted):
            raise EngineError(
                f"An adapter must change the {len(self._adapted)} weights that were announced, but {odd[0]!r} is "
                f"{'not one of them' if odd[0] in found else 'missing'}. Publish the base again."
            )
        for key, weight in self._weights.items():
            if (update := found.get(key)) is None:
                yield key, weight
            else:
                yield key, merge_low_rank(weight.to(update.down.device), update.down, update.up, update.scale)


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
