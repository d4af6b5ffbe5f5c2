"""Loading a sharded folder in a run that does not shard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from typing_extensions import override

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
        """Return the state in a file, or in a sharded folder, which must fit into the memory of the CPU."""
        if not Path(path).is_dir():
            found: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return found
        checkpoint = _load_distributed_checkpoint(Path(path))
        names = sorted((name for name in checkpoint if name.startswith(_OPTIMIZER)), key=_number)
        checkpoint["optimizer_states"] = [by_position(checkpoint.pop(name)) for name in names]
        return checkpoint


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
