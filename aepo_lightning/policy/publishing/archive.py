"""The weights of each iteration beside its rollouts, for replays."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from aepo_lightning.atomic_files import replacing
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.gather import named_weights


class WeightsArchive:
    """Published weights on disk, one file per version, so that rollouts made with them can be replayed."""

    def __init__(self, directory: str | Path, keep: int = -1) -> None:
        """Keep the settings.

        Args:
            directory: Where the files go.
            keep: How many of the newest versions stay; -1 keeps all, 0 writes none.

        Raises:
            ConfigError: If `keep` is below -1.
        """
        if keep < -1:
            raise ConfigError(f"`keep` must be -1 (all), 0 (none) or positive, but got {keep}.")
        self._directory = Path(directory)
        self._keep = keep

    def path(self, version: int) -> Path:
        """Return the file of one version."""
        return self._directory / f"{version:08d}.safetensors"

    def versions(self) -> list[int]:
        """Return the versions that are on disk, in order."""
        return sorted(int(path.stem) for path in self._directory.glob("*.safetensors") if path.stem.isdigit())

    def save(self, network: PolicyNetwork, version: int, is_writer: bool = True) -> None:
        """Write the weights of the network. Collective under FSDP2; only the rank that `is_writer` writes."""
        if self._keep == 0:
            return
        copies = {name: weight.cpu().clone() for name, weight in named_weights(network) if is_writer}
        if not is_writer:
            return
        with replacing(self.path(version)) as partial:
            save_file(copies, partial)
        for old in self.versions()[: -self._keep] if self._keep > 0 else ():
            self.path(old).unlink()

    def load(self, version: int) -> dict[str, torch.Tensor]:
        """Read one version by Hugging Face names; tied weights come once.

        Raises:
            DataError: If it is not there.
        """
        if not self.path(version).is_file():
            raise DataError(f"{self.path(version)} must exist, but the versions kept are {self.versions()}.")
        return dict(load_file(self.path(version)))
