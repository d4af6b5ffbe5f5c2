"""Which weights the engine generates with: published when they have changed, checked, named, and kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import WeightsStamp
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing.archive import WeightsArchive
from aepo_lightning.policy.publishing.check import PublicationCheck
from aepo_lightning.policy.publishing.publish import publish
from aepo_lightning.training.trained_policy import TrainedPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What the engine is asked after a publication."""

    prompt_ids: Sequence[int]
    temperature: float


@dataclass(slots=True, kw_only=True)
class EngineWeights:
    """The weights that the engine has, seen from the trainer."""

    engine: Engine
    check: PublicationCheck | None
    """Compares engine and trainer. Without it nobody knows whether weights are the same."""
    archive: WeightsArchive | None
    stamp: WeightsStamp | None = field(default=None, init=False)
    """Of the last publication."""
    _version: int | None = field(default=None, init=False)

    def has(self, version: int) -> bool:
        """Return whether the engine has the weights after so many optimiser steps."""
        return self._version == version

    def forget(self) -> None:
        """Publish again before the next rollout, whatever the version."""
        self._version = None

    def publish(self, module: TrainedPolicy, version: int, probe: Probe) -> None:
        """Give the engine the present weights of a module. Collective."""
        publish(module.trained_network(), self.engine, version)
        self.stamp = WeightsStamp(version=version)
        if self.check is not None:
            with module.evaluating():
                self.stamp = self.check(self.engine, module.score, probe.prompt_ids, probe.temperature, version)
        self._version = version

    def archive_present(self, network: PolicyNetwork, version: int, is_writer: bool) -> None:
        """Write the present weights of the trainer to where replays find them. Collective under FSDP2."""
        if self.archive is not None:
            self.archive.save(network, version, is_writer)

    def is_archived(self, stamp: WeightsStamp | None) -> bool:
        """Return whether `publish_archived` can bring back the weights that a stamp names."""
        return (
            stamp is not None
            and bool(stamp.digest)
            and self.archive is not None
            and stamp.version in self.archive.versions()
        )

    def publish_archived(self, stamp: WeightsStamp, probe: Probe) -> None:
        """Give the engine older weights, from the disk, and let it generate what it did after their publication.

        Raises:
            DataError: If they cannot be read.
        """
        assert self.archive is not None, "`is_archived` says so"
        self._version = None
        self.engine.load_weights(self.archive.load(stamp.version).items(), stamp.version)
        if self.check is not None:
            self.check.sample(self.engine, probe.prompt_ids, probe.temperature)
