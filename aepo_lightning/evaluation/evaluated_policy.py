"""Whose trajectories are evaluated: a policy with its weights, and the name and digest that results stand under."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.contracts.policy import PolicySource

_WHOLE_BYTES = 1 << 28
_NUM_BLOCKS, _BLOCK_BYTES = 256, 1 << 20
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPolicy:
    """A policy and the name that results stand under."""

    source: PolicySource
    """Architecture, tokenizer, and what an engine is built around."""
    weights: Callable[[], Iterable[tuple[str, Tensor]]]
    """By their Hugging Face names."""
    name: str
    digest: str
    """Of the files that the weights come from."""
    global_step: int = 0
    """Optimiser steps that they have seen; 0 of a model that no run has trained."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the stamp of an evaluation says of the model."""
        return {"name": self.name, "digest": self.digest, "global_step": self.global_step}

    @property
    def stamp(self) -> WeightsStamp:
        """What the journal of an evaluation says of the weights."""
        return WeightsStamp(version=self.global_step, digest=self.digest)


def evaluated(source: PolicySource) -> EvaluatedPolicy:
    """Return a policy as it comes: the model in a Hugging Face folder or under a name of the Hub, or one made here.

    Raises:
        ConfigError: If there is no such model.
        DataError: If a folder lacks a part of a model, such as the tokenizer.
    """
    _ = source.tokenizer, source.config  # what is missing is said before weights are downloaded
    stored = source.find_weights()
    name = str(getattr(source, "name_or_path", source.config.model_type))
    if stored is None:
        return EvaluatedPolicy(
            source=source, weights=lambda: parameters(source), name=name, digest=_weights_digest(source)
        )
    files = sorted({path for pattern in _MODEL_FILES for path in stored.folder.glob(pattern)})
    name = Path(name).resolve().name if Path(name).is_dir() else name
    return EvaluatedPolicy(source=source, weights=lambda: parameters(source), name=name, digest=files_digest(files))


def context_of(source: PolicySource, asked: int) -> int:
    """Return how long a sequence of a policy may be, in tokens: as asked, or what the model has if that is less."""
    own: int | None = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    return asked if own is None else min(asked, own)


def files_digest(files: Sequence[Path]) -> str:
    """Return a digest of names and contents of files; of very large ones, of blocks all over them."""
    digest = blake2b(digest_size=8)
    for path in files:
        digest.update(path.name.encode())
        digest.update(_content(path))
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    size, digest = path.stat().st_size, blake2b(digest_size=16)
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            return digest.digest()
        for number in range(_NUM_BLOCKS):  # what trains a model moves all of it, or a share of each of its layers
            file.seek((size - _BLOCK_BYTES) * number // (_NUM_BLOCKS - 1), os.SEEK_SET)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.digest()


def parameters(source: PolicySource) -> Iterable[tuple[str, Tensor]]:
    """Return the weights that a policy comes with, by their Hugging Face names."""
    return ((name, weight.detach()) for name, weight in source.build_model().named_parameters())


def _weights_digest(source: PolicySource) -> str:
    digest = blake2b(digest_size=8)
    for name, weight in parameters(source):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
