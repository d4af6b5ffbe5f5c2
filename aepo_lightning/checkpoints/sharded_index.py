"""What a sharded checkpoint holds, read without running anything that is in it.

torch writes the index of the shards as a pickle, and every entry of a shard that is no tensor as well. To load a
pickle is to call what it names, so that somebody else's checkpoint could do anything. Here the index is read with
stand-ins for the few classes of its format, and all other names are refused; entries are read with torch's own
restricted loader. A folder that passes has nothing left that torch's full loader would call.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

INDEX = ".metadata"
"""Name of the index in the folder of a checkpoint."""

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = frozenset(
    {
        *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *((_METADATA, f"{kind}StorageMetadata") for kind in ("Bytes", "Chunk", "Tensor")),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    }
)
"""Classes whose objects are built empty and then filled."""
_VALUES = frozenset(
    {
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        *((module, f"{system}Path") for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
    }
)
"""What is called with plain values."""


class _Unchangeable(type):
    """Type of stand-ins: a pickle can set attributes of what it names."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it changes {cls.__name__}")


class _Value(metaclass=_Unchangeable):
    """Stands in for what is called with plain values, and remembers nothing."""

    def __init__(self, *arguments: object) -> None:
        for each in arguments:
            if not isinstance(each, (str, int, tuple)):
                raise pickle.UnpicklingError(f"it calls {type(self).__name__} with {type(each).__name__}")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"it changes a {type(self).__name__}")


class _Record(metaclass=_Unchangeable):
    """Stands in for an object of the index: its fields as they were written, once."""

    fields: Any = None

    def __init__(self, *_: object) -> None:
        raise pickle.UnpicklingError(f"it calls {type(self).__name__}")

    def __setstate__(self, state: object) -> None:
        is_plain = isinstance(state, dict) or (type(self).__name__ == "TensorProperties" and isinstance(state, tuple))
        if self.fields is not None or not is_plain:
            raise pickle.UnpicklingError(f"it changes a {type(self).__name__}")
        self.fields = dict(state) if isinstance(state, dict) else state


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of the index, and those as stand-ins only."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a class.

        Raises:
            UnpicklingError: If it is none of the index.
        """
        if (module, name) in _RECORDS:
            return _Unchangeable(name, (_Record,), {})
        if (module, name) in _VALUES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return _Unchangeable(name, (_Value,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs and which could run code")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """Where an entry lies."""

    file: str
    offset: int
    length: int
    is_tensor: bool


def read_index(folder: Path) -> list[StoredEntry]:
    """Return what the index of a sharded checkpoint lists.

    Raises:
        pickle.UnpicklingError: If it names what an index does not need, or lists what lies outside of the folder.
        Exception: Whatever else a damaged pickle raises.
    """
    with (folder / INDEX).open("rb") as file:
        index = _IndexUnpickler(file).load()
    kinds: Mapping[str, object] = _fields(index, "Metadata")["state_dict_metadata"]
    stored: Mapping[Any, Any] = _fields(index, "Metadata")["storage_data"]
    return list(_entries(kinds, stored))


def _entries(kinds: Mapping[str, object], stored: Mapping[Any, Any]) -> Iterator[StoredEntry]:
    for key, info in stored.items():
        kind = kinds.get(_fields(key, "MetadataIndex")["fqn"])
        place = _fields(info, "_StorageInfo")
        name, offset, length = (place[field] for field in ("relative_path", "offset", "length"))
        if not (_is_file_name(name) and type(offset) is type(length) is int):
            raise pickle.UnpicklingError(f"it lists {name!r}, which is no file beside it")
        if place.get("transform_descriptors"):
            raise pickle.UnpicklingError(f"its entry in {name} is compressed, which no checkpoint of a run is")
        is_tensor = type(kind).__name__ == "TensorStorageMetadata"
        yield StoredEntry(file=name, offset=offset, length=length, is_tensor=is_tensor)


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name == PurePath(name).name and name not in ("", "..")


def _fields(record: object, name: str) -> Mapping[str, Any]:
    if not isinstance(record, _Record) or type(record).__name__ != name or not isinstance(record.fields, dict):
        raise pickle.UnpicklingError(f"it must have a {name} where it has {type(record).__name__}")
    return record.fields


def check_values(folder: Path, file: str, entries: list[StoredEntry]) -> None:
    """Read the entries of a shard that are no tensors with torch's restricted loader, which calls nothing.

    Raises:
        pickle.UnpicklingError: If one names what that loader does not know.
        Exception: Whatever else a damaged entry raises.
    """
    with (folder / file).open("rb") as shard:
        for entry in entries:
            if not entry.is_tensor:
                shard.seek(entry.offset)
                torch.load(io.BytesIO(shard.read(entry.length)), map_location="cpu", weights_only=True)
