"""What a run finds in its folder: nothing, the run that it continues, or something that it must not touch."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.differences import IGNORED, find_differences, listing, settle
from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_run import load_config
from aepo_lightning.app.targets import find_targets
from aepo_lightning.checkpoints import CheckpointSummary
from aepo_lightning.distributed.first_process import is_first_process
from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

_PRODUCTS = (
    "coldstart",
    "coldstart_logs",
    "coldstart_checkpoints",
    "checkpoints",
    "rollouts",
    "policy",
    "adapter",
    "tensorboard",
    "evaluation_before.json",
    "evaluation_after.json",
    "report.json",
)
"""What a run writes and would replace."""


def settle_with_folder(cfg: DictConfig, folder: Path, checkpoint: CheckpointSummary | None) -> DictConfig:
    """Return the configuration that runs, after a look at what the folder and the checkpoint come from.

    What differs from the run that is continued is printed, each key as applied, ignored or refused.

    Args:
        cfg: Composed for this start.
        folder: Of the run.
        checkpoint: What it goes on from, in this folder or in that of another run.

    Raises:
        ConfigError: If the folder holds another run, or files that are not of a run; or if a difference is refused.
    """
    own_checkpoint = checkpoint is not None and checkpoint.path.resolve().is_relative_to(folder.resolve())
    if (folder / CONFIG).is_file():
        # To another process of the job, the folder is that which the first one has just begun.
        if is_first_process() and not (cfg.ckpt_path == "last" or own_checkpoint):
            raise _holds_a_run(cfg, folder)
        return _settle(cfg, folder, trained=checkpoint is not None, own_folder=True)
    found = [name for name in _PRODUCTS if (folder / name).exists()] if is_first_process() else []
    if found and not own_checkpoint:
        raise ConfigError(
            f"`run_dir` must be a new folder or that of a run, but {folder} has no {CONFIG} and would lose "
            f"{', '.join(found)}. Choose another folder with run_dir=..."
        )
    origin = None if checkpoint is None else checkpoint.path.absolute().parent.parent
    if origin is not None and (origin / CONFIG).is_file():
        return _settle(cfg, origin, trained=True, own_folder=own_checkpoint)
    return cfg


def _settle(cfg: DictConfig, origin: Path, *, trained: bool, own_folder: bool) -> DictConfig:
    saved = _read(cfg, origin)
    differences = find_differences(saved, cfg, trained=trained, own_folder=own_folder)
    settled = settle(differences, saved, cfg, str(origin / CONFIG))
    if differences and is_first_process():
        logger.info("What differs from %s, saved -> now:\n%s", origin / CONFIG, listing(differences))
    return settled


def _read(cfg: DictConfig, folder: Path) -> DictConfig:
    """Read a saved configuration, of which parts may be built: none but those of the library and of this start."""
    return load_config(folder, allowed=list(find_targets(OmegaConf.to_container(cfg))), sections=tuple(IGNORED))


def _holds_a_run(cfg: DictConfig, folder: Path) -> ConfigError:
    try:
        found = find_differences(_read(cfg, folder), cfg, trained=False, own_folder=True)
        changes = [each.change for each in found]
        differing = f"what differs, saved -> now:\n{listing(changes)}" if changes else "with this configuration."
    except ConfigError as error:
        differing = f"its configuration cannot be compared: {error}"
    return ConfigError(
        f"`run_dir` must be a new folder, but {folder} holds a run already; {differing}\nTo go on with it, add "
        f"ckpt_path=last to run_dir={folder}; for a new run, choose another run_dir or leave it out."
    )
