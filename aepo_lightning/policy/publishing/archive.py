"""The weights of each iteration beside its rollouts, for replays."""

import logging
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aepo_lightning.atomic_files import replacing
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.gather import named_weights

logger = logging.getLogger(__name__)

AUTO_BYTES = 2_000_000_000
"""What the files may have together, unless their number is given."""


class WeightsArchive:
    """Published weights on disk, one file per version, so that rollouts made with them can be replayed."""

    def __init__(self, directory: str | Path, keep: int | Literal["auto"] = "auto") -> None:
        """Keep the settings.

        Args:
            directory: Where the files go.
            keep: How many of the newest versions stay; -1 keeps all, 0 writes none. `auto` keeps as many as fit into
                2 GB: all of a small policy, and none of one that is larger than that.

        Raises:
            ConfigError: If `keep` is none of these.
        """
        if keep != "auto" and (isinstance(keep, (str, bool)) or keep < -1):
            raise ConfigError(
                f"`keep` must be -1 (all), 0 (none), positive or auto, but got {keep!r}. Set `rollout.keep_weights`."
            )
        self._directory = Path(directory)
        self._keep = keep
        self._is_too_large = False

    def path(self, version: int) -> Path:
        """Return the file of one version."""
        return self._directory / f"{version:08d}.safetensors"

    def versions(self) -> list[int]:
        """Return the versions that are on disk, in order."""
        return sorted(int(path.stem) for path in self._directory.glob("*.safetensors") if path.stem.isdigit())

    def save(self, network: PolicyNetwork, version: int, is_writer: bool = True) -> None:
        """Write the weights of the network. Collective under FSDP2; only the rank that `is_writer` writes.

        Raises:
            DataError: If they cannot be written.
        """
        if self._keep == 0 or self._is_too_large:
            return
        copies, size = {}, 0
        for name, weight in named_weights(network):  # gathering is collective, also of what is too large
            size += weight.nbytes
            if is_writer and self._fits(size):
                copies[name] = weight.cpu().clone()
        self._is_too_large = not self._fits(size)
        if not is_writer:
            return
        if self._is_too_large:
            logger.info(
                "No weights are kept beside the rollouts: a version has %.3g GB. `aepo-replay` uses checkpoints; "
                "rollout.keep_weights=2 keeps the newest two all the same.",
                size / 1e9,
            )
            return
        self._write(self.path(version), copies)
        for old in self._superfluous():
            self.path(old).unlink()

    def _fits(self, size: int) -> bool:
        return self._keep != "auto" or size <= AUTO_BYTES

    def _write(self, path: Path, weights: dict[str, torch.Tensor]) -> None:
        try:
            with replacing(path) as partial:
                save_file(weights, partial)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path} must be written, but: {error}. Make room or allow it, or keep fewer weights with "
                "rollout.keep_weights=0; then continue with ckpt_path=last."
            ) from error

    def _superfluous(self) -> list[int]:
        """Return the versions that are too many, oldest first."""
        versions = self.versions()
        if self._keep != "auto":
            return versions[: -self._keep] if self._keep > 0 else []
        sizes = [self.path(version).stat().st_size for version in versions]
        return [version for index, version in enumerate(versions) if sum(sizes[index:]) > AUTO_BYTES]

    def load(self, version: int) -> dict[str, torch.Tensor]:
        """Read one version by Hugging Face names; tied weights come once.

        Raises:
            DataError: If it is not there, or cannot be read.
        """
        if not self.path(version).is_file():
            raise DataError(f"{self.path(version)} must exist, but the versions kept are {self.versions()}.")
        return read_weights(self.path(version))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of weights.

    Raises:
        DataError: If it is not there, or is no whole safetensors file.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} must be a safetensors file that can be read, but: {error}. Name another one."
        ) from error
