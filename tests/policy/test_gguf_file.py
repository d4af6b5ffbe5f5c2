"""GGUF files are read to the last value, and what is damaged or unknown is refused by name."""

import struct

import numpy as np
import pytest
import torch

from aepo_lightning.errors import DataError
from aepo_lightning.policy.gguf_file import GGUFFile
from tests.support.gguf import FORMATS, write_gguf

VALUES = {"general.name": "é", "a.number": 7, "a.fraction": 0.5, "a.list": ["x", "yz"], "numbers": [1, 2, 3]}
SHAPE = (2, 64)


def blocks_of(kind):
    """Bytes of a tensor and the numbers that they mean, one by one from the definition."""
    rng = np.random.default_rng(0)
    data, numbers = b"", []
    for _ in range(4):
        scale, minimum = np.float16(rng.normal()), np.float16(rng.normal())
        if kind == "Q4_1":
            levels = rng.integers(0, 16, 32)
            packed = [int(levels[i]) | int(levels[i + 16]) << 4 for i in range(16)]
            data += struct.pack("<ee16B", scale, minimum, *packed)
            numbers += [float(scale) * float(level) + float(minimum) for level in levels]
        elif kind == "Q8_0":
            levels = rng.integers(-128, 128, 32)
            data += struct.pack("<e32b", scale, *map(int, levels))
            numbers += [float(scale) * float(level) for level in levels]
        else:
            drawn = rng.normal(size=32).astype(np.float32 if kind == "F32" else np.float16)
            data += drawn.tobytes()
            numbers += drawn.tolist()
    return data, numbers


def written(tmp_path, kind="F32", name="tensor.weight"):
    data, numbers = blocks_of(kind)
    first = ((3,), FORMATS["F32"], np.arange(3, dtype=np.float32).tobytes())
    path = write_gguf(tmp_path / "file.gguf", VALUES, {"first": first, name: (SHAPE, FORMATS[kind], data)})
    return path, torch.tensor(numbers).reshape(SHAPE)


def test_values_come_as_they_are_written(tmp_path):
    file = GGUFFile.open(written(tmp_path)[0])
    assert dict(file.values) == VALUES
    assert file.names() == {"first", "tensor.weight"}
    with pytest.raises(DataError, match=r"must have the value llama.block_count, but has not"):
        file.value("llama.block_count")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_tensors_are_what_the_format_defines(tmp_path, kind):
    path, expected = written(tmp_path, kind)
    tensors = dict(GGUFFile.open(path).tensors())
    assert torch.equal(tensors["first"], torch.arange(3.0))
    torch.testing.assert_close(tensors["tensor.weight"], expected, rtol=1e-6, atol=1e-6)


def test_a_format_that_is_not_read_is_named(tmp_path):
    data, _ = blocks_of("Q4_1")
    path = write_gguf(tmp_path / "file.gguf", VALUES, {"odd": (SHAPE, FORMATS["Q4_0"], data)})
    with pytest.raises(DataError, match="must be F32, F16, Q4_1, Q8_0, but odd has format 2"):
        dict(GGUFFile.open(path).tensors())


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda data: data[:-40], "must hold tensor.weight whole, but ends within it"),
        (lambda data: data[:100], "ends within its head"),
        (lambda data: b"GGML" + data[4:], "must be a GGUF file of version 2 or 3"),
        (lambda data: data[:4] + b"\x01" + data[5:], "must be a GGUF file of version 2 or 3"),
        (lambda _: b"", "must be a GGUF file, but"),
    ],
    ids=["tensor", "head", "magic", "version", "empty"],
)
def test_a_damaged_file_is_refused(tmp_path, spoil, rule):
    path, _ = written(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rule):
        dict(GGUFFile.open(path).tensors())


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        GGUFFile.open(tmp_path / "none.gguf")
