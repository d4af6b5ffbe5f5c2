"""The weights that a run has kept, by the optimiser steps that they have seen."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from aepo_lightning.app.saved_run import SavedPolicy
from aepo_lightning.checkpoints import find_checkpoints
from aepo_lightning.contracts.policy import PolicySource
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.publishing.archive import WeightsArchive, read_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWeights:
    """Weights on disk."""

    version: int | None
    """Optimiser steps that they have seen; None if the file does not say."""
    place: str
    """Where they lie, for people."""
    load: Callable[[], Mapping[str, Tensor]]
    """Reads them by their Hugging Face names, with an adapter merged into them."""


def kept_weights(folder: Path, policy: PolicySource, lora: LoRA | None) -> Iterator[KeptWeights]:
    """Yield what a run has kept: beside the rollouts, what it started from, then checkpoints from the newest on.

    Args:
        folder: Of the run.
        policy: What it started from.
        lora: Settings of the adapter that it trained.

    Raises:
        DataError: If a checkpoint is damaged.
    """
    archive = WeightsArchive(folder / "rollouts" / "weights")
    for version in archive.versions():
        place = archive.path(version).relative_to(folder).as_posix()
        yield KeptWeights(version=version, place=place, load=lambda version=version: archive.load(version))  # type: ignore[misc]
    start = "coldstart" if (folder / "coldstart" / "config.json").is_file() else "the model that it started from"
    yield KeptWeights(version=0, place=start, load=lambda: dict(policy.build_model().named_parameters()))
    for path in find_checkpoints(folder / "checkpoints"):
        yield named_weights_file(path, policy, lora)


def named_weights_file(path: Path, policy: PolicySource, lora: LoRA | None) -> KeptWeights:
    """Return the weights of a checkpoint, or of a safetensors file, which knows its steps by its name alone.

    Args:
        path: Of the file, or of the folder of a sharded checkpoint.
        policy: What the run started from.
        lora: Settings of the adapter that the run trained.

    Raises:
        ConfigError: If nothing is there.
        DataError: If it is damaged, or of another model.
    """
    if not path.exists():
        raise ConfigError(f"`--checkpoint` must be a checkpoint or a file of weights, but {path} does not exist.")
    if path.suffix == ".safetensors":
        version = int(path.stem) if path.stem.isdigit() else None
        return KeptWeights(version=version, place=path.name, load=lambda: read_weights(path))
    saved = SavedPolicy.open(path, lora, policy)
    return KeptWeights(version=saved.summary.global_step, place=path.name, load=lambda: dict(saved.weights()))


def find_weights(folder: Path, policy: PolicySource, lora: LoRA | None, version: int) -> Mapping[str, Tensor]:
    """Return the weights of a run after so many optimiser steps, from wherever they were kept.

    Args:
        folder: Of the run.
        policy: What it started from.
        lora: Settings of the adapter that it trained.
        version: Optimiser steps.

    Raises:
        ConfigError: If they were not kept.
        DataError: If they cannot be read.
    """
    seen = []
    for kept in kept_weights(folder, policy, lora):
        if kept.version == version:
            return kept.load()
        seen.append(kept.version or 0)
    raise ConfigError(
        f"The weights after {version} optimiser steps must have been kept, but {folder} has those after "
        f"{sorted(set(seen))} steps. Run with `rollout.keep_weights=-1`, or give `--weights FILE`."
    )


def nearest_weights(folder: Path, policy: PolicySource, lora: LoRA | None, version: int) -> KeptWeights:
    """Return the weights of a run after so many optimiser steps or, where they were not kept, the nearest ones.

    Of two that are as near, the earlier ones.

    Args:
        folder: Of the run.
        policy: What it started from.
        lora: Settings of the adapter that it trained.
        version: Optimiser steps.

    Raises:
        DataError: If a checkpoint is damaged.
    """
    nearest: KeptWeights | None = None
    for kept in kept_weights(folder, policy, lora):
        if nearest is None or _distance(kept, version) < _distance(nearest, version):
            nearest = kept
        if nearest.version == version:
            break
    assert nearest is not None, "there is always what the run started from"
    return nearest


def _distance(kept: KeptWeights, version: int) -> tuple[int, int]:
    """Return what is least for the nearest weights, of two the earlier ones."""
    own = kept.version or 0
    return abs(own - version), own
