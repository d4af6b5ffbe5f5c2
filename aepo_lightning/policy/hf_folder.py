"""Hugging Face folders: a policy, or its adapter alone, as transformers, peft and vLLM load them.

Weights are written as they come, a file at a time, so that a policy need not fit into the memory of one process. A
folder is written beside its place and renamed when it is whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from aepo_lightning import __version__
from aepo_lightning.atomic_files import replacing
from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.checked_weights import checked_weights
from aepo_lightning.policy.end_tokens import eos_token_ids
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.skeleton import meta_model

MARK = "aepo_export.json"
"""A file that every folder written here has; only such a folder is replaced without being asked."""
_SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderWriter:
    """Writes one folder; nothing is left of it, and nothing in its place is touched, if that fails."""

    target: Path
    source: PolicySource
    """Gives the architecture and the tokenizer."""
    overwrite: bool = False
    """Also replace a folder that was not written here."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """Digests of what the policy was made of, kept beside it."""
    shard_bytes: int = _SHARD_BYTES
    """Size at which a file of weights is closed and the next begun."""

    def __post_init__(self) -> None:
        """Look at the target before anything is computed.

        Raises:
            ConfigError: If something is there that must not be replaced.
        """
        is_folder = self.target.is_dir()
        is_free = not self.target.exists() or (is_folder and not any(self.target.iterdir()))
        if is_free or (is_folder and (self.overwrite or (self.target / MARK).is_file())):
            return
        raise ConfigError(
            f"The target must be new or an earlier export, but {self.target} has other content. Name another folder"
            + (", or allow it to be replaced with `--overwrite`." if is_folder else ".")
        )

    def write_model(self, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> None:
        """Write a whole policy.

        Args:
            weights: By Hugging Face names; a tied weight may come under either name, or both.
            dtype: Precision to write. None keeps that of the weights.

        Raises:
            DataError: If they are not the weights of the architecture, or the folder cannot be written.
        """
        with self._partial() as partial:
            files = _ShardedFile(partial, self.shard_bytes)
            model = meta_model(self.source.config)
            for name, weight in checked_weights(model, weights, DataError):
                files.add(name, weight if dtype is None else weight.to(dtype))
            files.finish()
            config = deepcopy(self.source.config)
            config.architectures, config.use_cache, config.dtype = [type(model).__name__], True, files.dtype
            config.save_pretrained(partial)
            self._generation_config().save_pretrained(partial)
            self.source.tokenizer.save_pretrained(partial)

    def write_adapter(
        self, lora: LoRA, updates: Iterable[LowRankUpdate], base: str, dtype: torch.dtype | None = None
    ) -> None:
        """Write an adapter in peft's format.

        Args:
            lora: Its settings.
            updates: Its matrices.
            base: Folder or name of the model that it belongs to.
            dtype: Precision to write. None keeps that of the matrices.

        Raises:
            DataError: If the folder cannot be written.
        """
        with self._partial() as partial:
            tensors, layers = {}, set()
            for update in updates:
                layer = update.name.removesuffix(".weight")
                layers.add(layer.rpartition(".")[2])
                for part, matrix in (("lora_A", update.down), ("lora_B", update.up)):
                    tensors[f"base_model.model.{layer}.{part}.weight"] = _on_disk(matrix.to(dtype or matrix.dtype))
            save_file(tensors, partial / "adapter_model.safetensors", {"format": "pt"})
            config = lora.peft_config(sorted(layers))
            config.base_model_name_or_path, config.inference_mode = base, True
            config.save_pretrained(partial)
            self.source.tokenizer.save_pretrained(partial)

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """Give a folder to write to, and put it in place afterwards."""
        try:
            with replacing(self.target) as partial:
                partial.mkdir()
                yield partial
                mark = {"library": "aepo-lightning", "version": __version__, "made_of": dict(self.made_of)}
                (partial / MARK).write_text(json.dumps(mark), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.target} must be a folder that can be written, but: {error}. Make room or name another one; "
                "nothing was overwritten."
            ) from error

    def _generation_config(self) -> GenerationConfig:
        stated = getattr(self.source, "generation_config", None)
        config = GenerationConfig.from_model_config(self.source.config) if stated is None else deepcopy(stated)
        config.use_cache = True  # not in training
        ends, named = eos_token_ids(self.source), config.eos_token_id
        if {*ends} != {*(named if isinstance(named, list) else [named])}:
            config.eos_token_id = list(ends) if len(ends) > 1 else next(iter(ends), None)
        return config


def read_made_of(folder: Path) -> dict[str, str] | None:
    """Return the digests that were kept beside a policy; None where there are none."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made_of = found.get("made_of") if isinstance(found, dict) else None
    return dict(made_of) if isinstance(made_of, dict) and made_of else None


def base_name(policy: PolicySource) -> str:
    """Return where the weights below an adapter are: a folder or a hub name, or what the architecture is called."""
    return str(getattr(policy, "name_or_path", None) or policy.config.model_type)


class _ShardedFile:
    """Safetensors files with an index, named once their number is known."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._open: dict[str, Tensor] = {}
        self._size = self._total = 0
        self._shards: list[list[str]] = []
        self.dtype: torch.dtype | None = None
        """Of the first weight."""

    def add(self, name: str, weight: Tensor) -> None:
        self.dtype = self.dtype or weight.dtype
        self._open[name] = _on_disk(weight)
        self._size += weight.nbytes
        if self._size >= self._shard_bytes:
            self._close()

    def finish(self) -> None:
        if self._open:
            self._close()
        number = len(self._shards)
        files = [f"model-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)]
        if number == 1:
            files = ["model.safetensors"]
        for index, file in enumerate(files):
            self._path(index).rename(self._folder / file)
        if number > 1:
            places = {name: file for file, names in zip(files, self._shards, strict=True) for name in names}
            index_file = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
            (self._folder / "model.safetensors.index.json").write_text(
                json.dumps(index_file, indent=1), encoding="utf-8"
            )

    def _close(self) -> None:
        save_file(self._open, self._path(len(self._shards)), {"format": "pt"})
        self._shards.append(list(self._open))
        self._total += self._size
        self._open, self._size = {}, 0

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index}"


def _on_disk(weight: Tensor) -> Tensor:
    """Return a copy that is not valid for less long than the file is open."""
    return torch.empty(weight.shape, dtype=weight.dtype).copy_(weight.detach())
