"""Reading Hugging Face weights from safetensors files, of each tensor only the rows that a rank holds.

Names in the files must be the names of the modules. Architectures whose files are laid out otherwise, such as
mixtures of experts that transformers fuses while loading, are refused by name.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from aepo_lightning.errors import DataError
from aepo_lightning.policy.lora import is_adapter, plain_name

WHOLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_READABLE = ("F64", "F32", "BF16", "F16")
_NAMED = 5
"""How many names an error shows."""


@dataclass(slots=True)
class ReadCount:
    """What one rank has read."""

    num_bytes: int = 0
    """In the precision of the files."""
    largest: int = 0
    """Bytes of the largest read: what exists at once beside the weights themselves."""

    def add(self, tensor: Tensor) -> None:
        """Count one read."""
        self.num_bytes += tensor.nbytes
        self.largest = max(self.largest, tensor.nbytes)


@dataclass(slots=True)
class WeightFiles:
    """The tensors in the safetensors files of a folder, by name."""

    folder: Path
    count: ReadCount = field(default_factory=ReadCount)
    _files: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        """Find the files.

        Raises:
            DataError: If there are none, or one that the index names is missing.
        """
        self._files = dict(_find_tensors(self.folder))

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors from the files, whole ones and shards. Precisions that differ are converted.

        Files are opened one after another, so that no more than one is mapped into memory.

        Args:
            targets: What to fill, by the names of the files.

        Raises:
            DataError: If a tensor is missing, has another shape or is quantised, or a file cannot be read.
        """
        self._refuse_missing(targets)
        for path in sorted({self._files[name] for name in targets}):
            self._load_file(path, {name: target for name, target in targets.items() if self._files[name] == path})

    def unexpected(self, names: set[str]) -> list[str]:
        """Return the names in the files that are not among `names`."""
        return sorted(set(self._files) - names)

    def _load_file(self, path: Path, targets: Mapping[str, Tensor]) -> None:
        with _readable(path) as handle:
            for name, target in targets.items():
                stored = _slices(handle, name, path)
                _check(name, stored, target, path)
                rows = _rows(target)
                local = target.to_local() if isinstance(target, DTensor) else target
                if local.numel() == 0:
                    continue
                found = handle.get_tensor(name) if rows is None else stored[rows]
                self.count.add(found)
                with torch.no_grad():
                    local.copy_(found)

    def _refuse_missing(self, targets: Mapping[str, Tensor]) -> None:
        missing = sorted(set(targets) - set(self._files))
        if missing:
            raise DataError(
                f"{self.folder} must have every weight of the model, but {_list(missing)} are missing and "
                f"{_list(self.unexpected(set(targets))) or 'none'} are not used. Weights are loaded under the names of "
                "their modules; use an architecture whose files have these, or train on one device without sharding."
            )


def weight_targets(module: nn.Module) -> dict[str, Tensor]:
    """Return what a module needs from files: parameters, tied ones once, and the buffers that are saved with them."""
    saved = module.state_dict(keep_vars=True).keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in saved}
    parameters = {name: each.detach() for name, each in module.named_parameters() if not is_adapter(name)}
    return {plain_name(name): parameter for name, parameter in parameters.items()} | buffers


def _find_tensors(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name of every tensor and the file it is in."""
    if (folder / INDEX_FILE).is_file():
        names = _read_index(folder / INDEX_FILE)
        absent = sorted({name for name in names.values() if not (folder / name).is_file()})
        if absent:
            raise DataError(f"{folder / INDEX_FILE} names {_list(absent)}, which must exist. Copy or download them.")
        yield from ((name, folder / file) for name, file in names.items())
    elif (folder / WHOLE_FILE).is_file():
        with _readable(folder / WHOLE_FILE) as handle:
            yield from ((name, folder / WHOLE_FILE) for name in handle.keys())  # noqa: SIM118 -- it is no mapping
    else:
        other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        advice = f" Load {_list(other)} with transformers and save it with `save_pretrained` once." if other else ""
        raise DataError(f"{folder} must hold {WHOLE_FILE} or {INDEX_FILE}, but has neither.{advice}")


def _read_index(path: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be JSON with a `weight_map`, but: {error!r}. Download it again.") from error
    return names


def _readable(path: Path) -> Any:
    """Open a file of tensors.

    Raises:
        DataError: If its header is broken or it is shorter than the header says.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} must be a whole safetensors file, but: {error}. Download or save it again.") from error


def _slices(handle: Any, name: str, path: Path) -> Any:
    try:
        return handle.get_slice(name)
    except SafetensorError as error:
        raise DataError(f"`{name}` must be in {path}, as the index says, but is not. Download both again.") from error


def _check(name: str, stored: Any, target: Tensor, path: Path) -> None:
    shape, precision = tuple(stored.get_shape()), stored.get_dtype()
    if shape != tuple(target.shape):
        raise DataError(
            f"`{name}` in {path} must have the shape {tuple(target.shape)} of the model, but has {shape}. Weights and "
            "config.json must belong together."
        )
    if precision not in _READABLE:
        raise DataError(
            f"`{name}` in {path} must be one of {', '.join(_READABLE)}, but is {precision}. Quantised weights cannot "
            "be trained; use the original ones."
        )


def _rows(target: Tensor) -> slice | None:
    """Return which rows of the whole tensor this rank holds; None for all of them."""
    if not isinstance(target, DTensor):
        return None
    for dim, placement in enumerate(target.placements):
        if isinstance(placement, Shard):
            assert placement.dim == 0, "FSDP2 shards rows"
            num_rows, mesh = target.shape[0], target.device_mesh
            size = -(-num_rows // mesh.size(dim))
            start = min(size * mesh.get_local_rank(dim), num_rows)
            return slice(start, min(start + size, num_rows))
    return None


def _list(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
