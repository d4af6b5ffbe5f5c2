"""Loading a sharded folder: in a run that does not shard, and nowhere before it was checked."""

from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from lightning.pytorch.strategies import Strategy
from typing_extensions import override

from aepo_lightning.checkpoints.verification import check_shards

_OPTIMIZER = "optimizer_"


class EitherCheckpointIO(TorchCheckpointIO):
    """Lightning's input and output of checkpoint files, which also reads the sharded folders of FSDP2.

    A file is written as it is serialised, without a second copy in memory.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file. Not atomic: the caller renames it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the state in a file, or in a sharded folder, which must fit into the memory of the CPU.

        Raises:
            DataError: If the folder is damaged or would run code.
        """
        if not Path(path).is_dir():
            found: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return found
        check_shards(Path(path))
        checkpoint = _load_distributed_checkpoint(Path(path))
        names = sorted((name for name in checkpoint if name.startswith(_OPTIMIZER)), key=_number)
        checkpoint["optimizer_states"] = [by_position(checkpoint.pop(name)) for name in names]
        return checkpoint


def check_before_loading(strategy: Strategy) -> None:
    """Have a strategy check a sharded folder each time before it loads one. Later calls do nothing.

    A strategy that shards reads such folders by itself, with torch's full loader.
    """
    if "load_checkpoint" in vars(strategy):
        return
    load = strategy.load_checkpoint

    @wraps(load)
    def checked(checkpoint_path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        if Path(checkpoint_path).is_dir():
            check_shards(Path(checkpoint_path))
        return load(checkpoint_path, *args, **options)

    strategy.load_checkpoint = checked  # type: ignore[method-assign]


def _number(name: str) -> int:
    return int(name.removeprefix(_OPTIMIZER))


def by_position(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer under the positions of its parameters instead of their names."""
    groups = state["param_groups"]
    names = [name for group in groups for name in group["params"]]
    position = {name: index for index, name in enumerate(names)}
    return {
        "state": {position[name]: values for name, values in state["state"].items()},
        "param_groups": [{**group, "params": [position[name] for name in group["params"]]} for group in groups],
    }
