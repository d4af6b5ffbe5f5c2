"""What a run has left in its folder: its configuration, the policy that it started from, checkpoints."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded

from aepo_lightning.app.build import build
from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_config import read_config
from aepo_lightning.app.targets import check_targets
from aepo_lightning.checkpoints import CheckpointSummary, check_architecture, find_last, verify_checkpoint
from aepo_lightning.contracts.engine import LowRankUpdate
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.ops.low_rank import merge_low_rank
from aepo_lightning.policy.lora import LoRA, is_adapter, plain_name
from aepo_lightning.policy.source import PretrainedPolicy

_PREFIX, _SHARDED = "network.model.", "state_dict."
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"


def load_config(folder: Path, allowed: Sequence[str] = (), sections: Sequence[str] = ()) -> DictConfig:
    """Read the configuration of a run, which may be somebody else's.

    Args:
        folder: Of the run.
        allowed: Names of functions, classes, modules and packages beside this library that its parts may be.
        sections: Dotted keys of the nodes that will be built; only their parts are looked at. Empty looks at all.

    Raises:
        ConfigError: If the folder is not that of a run, or a later version of this library wrote it, or it names parts
            that are neither this library's nor allowed.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"The folder of a run must have a {CONFIG}, but {folder} has none. Name a run's folder.")
    cfg = read_config(path)
    check_targets(cfg, str(path), allowed, sections)
    return cfg


def training_rollouts(folder: Path, iteration: int | None = None) -> list[str]:
    """Return the names of the rollouts of training whose trees a run has kept, in order.

    Args:
        folder: Of the run.
        iteration: Only this one's, a name for each rank and each round of dynamic sampling.
    """
    pattern = "train-*.jsonl" if iteration is None else f"train-{iteration:05d}-*.jsonl"
    stems = (path.stem for path in (folder / "rollouts").glob(pattern) if "." not in path.stem)
    return sorted(stems, key=lambda stem: [int(number) for number in re.findall(r"\d+", stem)])


def first_policy(cfg: DictConfig, folder: Path) -> PolicySource:
    """Return the policy that reinforcement learning started from: that of the cold start where there was one."""
    if (folder / "coldstart" / "config.json").is_file():
        return PretrainedPolicy(name_or_path=str(folder / "coldstart"))
    policy: PolicySource = build(cfg.model)
    return policy


def saved_adapter(cfg: DictConfig) -> LoRA | None:
    """Return the settings of the adapter that a run trained; None if it trained all weights."""
    lora: LoRA | None = None if cfg.module.get("adapter") is None else build(cfg.module.adapter)
    return lora


def find_checkpoint(source: Path) -> tuple[Path, Path]:
    """Return a checkpoint and the folder of its run.

    Args:
        source: Either of them. Of a run, the newest checkpoint is taken.

    Raises:
        ConfigError: If there is none.
    """
    if (source / CONFIG).is_file():
        path = find_last(source / "checkpoints")
        if path is None:
            raise ConfigError(f"{source} must hold a checkpoint, but {source / 'checkpoints'} has none. Train first.")
        return path, source
    if not source.exists():
        raise ConfigError(f"A checkpoint or the folder of a run must be named, but {source} does not exist.")
    return source, source.absolute().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPolicy:
    """The policy in a checkpoint, file or sharded folder, read weight by weight."""

    summary: CheckpointSummary
    lora: LoRA | None
    """Settings of the adapter that the run trained."""
    _stored: Mapping[str, Any]
    """Of each parameter, the tensor in a file, or what the index of a sharded folder says of it."""

    @classmethod
    def open(cls, path: Path, lora: LoRA | None, policy: PolicySource) -> "SavedPolicy":
        """Look into a checkpoint.

        Args:
            path: A file, or a sharded folder.
            lora: Settings of the adapter that the run trained.
            policy: What the run started from.

        Raises:
            DataError: If it is damaged, or of another model.
        """
        summary = verify_checkpoint(path)
        check_architecture(summary.identity, policy.config, str(path))
        found = _index_of_folder(path) if path.is_dir() else _state_of_file(path)
        own = {name.removeprefix(_PREFIX): each for name, each in found.items() if name.startswith(_PREFIX)}
        if (lora is not None) != any(map(is_adapter, own)):
            raise DataError(
                f"{path} must {'have' if lora else 'not have'} an adapter as the configuration of its run says, but it "
                f"does{' not' if lora else ''}. Keep checkpoints in the folder of their run."
            )
        return cls(summary=summary, lora=lora, _stored=own)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight by its Hugging Face name, with an adapter merged into it."""
        for name in sorted(name for name in self._stored if not is_adapter(name)):
            weight, plain = self._read(name), plain_name(name)
            if plain != name and plain.endswith(".weight"):
                update = self._update(plain.removesuffix(".weight"))
                weight = merge_low_rank(weight, update.down, update.up, update.scale)
            yield plain, weight

    def updates(self) -> Iterator[LowRankUpdate]:
        """Yield what the adapter adds to each adapted weight."""
        for name in sorted(name for name in self._stored if name.endswith(_DOWN)):
            yield self._update(name.removesuffix(_DOWN))

    def _update(self, layer: str) -> LowRankUpdate:
        assert self.lora is not None, "`open` has compared settings and names"
        down, up = self._read(layer + _DOWN), self._read(layer + _UP)
        return LowRankUpdate(name=f"{layer}.weight", down=down, up=up, scale=self.lora.scale)

    def _read(self, name: str) -> Tensor:
        stored = self._stored[name]
        if isinstance(stored, Tensor):
            return stored
        key = _SHARDED + _PREFIX + name
        target = {key: torch.empty(stored.size, dtype=stored.properties.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads
            load_sharded(target, storage_reader=FileSystemReader(self.summary.path), no_dist=True)
        return target[key]


def _state_of_file(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    state: dict[str, Any] = checkpoint["state_dict"]
    return state


def _index_of_folder(path: Path) -> dict[str, Any]:
    index = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name.removeprefix(_SHARDED): stored for name, stored in index.items() if name.startswith(_SHARDED)}
