"""The configuration of `train.py`, as a command line composes it."""

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from aepo_lightning.app.command import CONFIG_MODULE, CONFIG_NAME


def composed(*overrides: str) -> DictConfig:
    """Return the configuration with these overrides."""
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            return compose(CONFIG_NAME, list(overrides))
        finally:
            GlobalHydra.instance().clear()
