"""GGUF files, llama.cpp's container: the values and tensors of one, read without another library.

What is stored of a tensor in blocks of few bits comes out as float32.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aepo_lightning.errors import DataError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_BLOCK = 32
"""Weights that share a scale in the formats of blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """The head of a GGUF file; tensors are read when they are asked for."""

    path: Path
    values: Mapping[str, Any]
    """By name: numbers, texts and lists of them."""
    _places: Mapping[str, "_Place"] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "GGUFFile":
        """Read the head.

        Raises:
            DataError: If there is no such file, it is no GGUF file of a known version, or it ends too early.
        """
        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} must be a GGUF file, but: {error}. Correct the path.") from error
        head = _Head(path, data)
        if head.take(len(_MAGIC)) != _MAGIC or head.number("I") not in _VERSIONS:
            raise DataError(f"{path} must be a GGUF file of version 2 or 3, but is not. Name another file.")
        num_tensors, num_values = head.number("Q"), head.number("Q")
        values = {head.text(): head.value(head.number("I")) for _ in range(num_values)}
        places = {head.text(): head.place() for _ in range(num_tensors)}
        start = head.aligned(values.get("general.alignment", 32))
        return cls(path=path, values=values, _places={name: each.after(start) for name, each in places.items()})

    def value(self, name: str) -> Any:
        """Return a value.

        Raises:
            DataError: If there is none of this name.
        """
        if name not in self.values:
            raise DataError(f"{self.path} must have the value {name}, but has not. Name a file of a whole model.")
        return self.values[name]

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._places)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors as float32, by the names that they have in the file.

        Raises:
            DataError: If a tensor has a format that is not read here, or the file ends before its last byte.
        """
        data = np.memmap(self.path, dtype=np.uint8, mode="r")
        for name, place in self._places.items():
            known = _FORMATS.get(place.format)
            if known is None:
                names = ", ".join(each.name for each in _FORMATS.values())
                raise DataError(
                    f"Tensors of {self.path} must be {names}, but {name} has format {place.format}. Name another file."
                )
            size = prod(place.shape) // known.block * known.block_bytes
            stored = data[place.start : place.start + size]
            if len(stored) < size:
                raise DataError(f"{self.path} must hold {name} whole, but ends within it. Fetch the file again.")
            yield name, torch.from_numpy(known.read(stored)).reshape(place.shape)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    format: int
    start: int

    def after(self, offset: int) -> "_Place":
        return _Place(self.shape, self.format, self.start + offset)


class _Head:
    """Reads the head of a file from its first byte on."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self._path = path
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Read the next bytes."""
        taken = self._data[self._at : self._at + size].tobytes()
        if len(taken) < size:
            raise DataError(f"{self._path} must be a whole GGUF file, but ends within its head. Fetch it again.")
        self._at += size
        return taken

    def number(self, code: str) -> Any:
        """Read a number of a type of `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """Read a text, which stands behind its length."""
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Read a value of one of GGUF's types."""
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, length = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(length)]
        if kind not in _NUMBERS:
            raise DataError(f"Values of {self._path} must have a type of GGUF's, but got {kind}. Fetch it again.")
        return self.number(_NUMBERS[kind])

    def place(self) -> _Place:
        """Read where a tensor lies; its dimensions come in reverse order."""
        sizes = [self.number("Q") for _ in range(self.number("I"))]
        return _Place(tuple(reversed(sizes)), self.number("I"), self.number("Q"))

    def aligned(self, step: int) -> int:
        """Return the next multiple."""
        return -(-self._at // step) * step


@dataclass(frozen=True, slots=True)
class _Format:
    """How the weights of a tensor are stored."""

    name: str
    block: int
    block_bytes: int
    read: Callable[[np.ndarray], np.ndarray]


def _read_floats(kind: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda stored: stored.view(kind).astype(np.float32)


def _read_q4_1(stored: np.ndarray) -> np.ndarray:
    """Read blocks of a scale, a minimum and 16 bytes: four bits of 32 weights, lower halves before upper ones."""
    blocks = stored.reshape(-1, 4 + _BLOCK // 2)
    scale, minimum = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    levels = np.concatenate([blocks[:, 4:] & 0x0F, blocks[:, 4:] >> 4], axis=1)
    return scale * levels.astype(np.float32) + minimum


def _read_q8_0(stored: np.ndarray) -> np.ndarray:
    """Read blocks of a scale and eight bits for each weight."""
    blocks = stored.reshape(-1, 2 + _BLOCK)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


_FORMATS = {
    0: _Format("F32", 1, 4, _read_floats(np.float32)),
    1: _Format("F16", 1, 2, _read_floats(np.float16)),
    3: _Format("Q4_1", _BLOCK, 4 + _BLOCK // 2, _read_q4_1),
    8: _Format("Q8_0", _BLOCK, 2 + _BLOCK, _read_q8_0),
}
