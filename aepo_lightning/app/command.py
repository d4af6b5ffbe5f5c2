"""The command line of `train.py`: check the overrides, compose the configuration, turn errors into one message."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from aepo_lightning.app.build import find_modules_here
from aepo_lightning.app.overrides import config_keys, explain_override_error
from aepo_lightning.distributed.ranks import guarded_process
from aepo_lightning.errors import AepoError

CONFIG_MODULE = "aepo_lightning.conf"

_KNOWN_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6.6 with torch 2.13
    r"Your `IterableDataset` has `__len__` defined",  # one process reads it
    r".*does not have many workers",  # rollouts come from this process
    r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own folder
)


def explain_bad_overrides(overrides: Sequence[str]) -> str | None:
    """Compose the configuration on trial; return what is wrong with the overrides, or None."""
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        keys = _known_keys(overrides)
        try:
            OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            return explain_override_error(error, keys)
        finally:
            GlobalHydra.instance().clear()
    return None


def _known_keys(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of the configuration with the groups that overrides choose, as far as it can be composed."""
    groups = [word for word in overrides if "." not in word.partition("=")[0]]
    for chosen in (groups, []):
        with suppress(HydraException, OmegaConfBaseException):
            return config_keys(OmegaConf.to_container(compose("train", overrides=chosen)))  # type: ignore[arg-type]
    raise AssertionError("without overrides there is nothing to refuse")


def quieten_libraries() -> None:
    """Keep other libraries' banners and known warnings out of the output; everything else still shows."""
    for name in ("httpx", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def command(run: Callable[[DictConfig], None]) -> Callable[[], None]:
    """Make a command line of what runs a composed configuration: `python train.py key=value group=option ...`.

    A mistake of the user ends in one message and exit status 1.
    """

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="train")
    def compose_and_run(cfg: DictConfig) -> None:
        try:
            with guarded_process():
                run(cfg)
        except AepoError as error:
            logging.getLogger(__name__).debug("raised by", exc_info=error)
            sys.exit(f"{type(error).__name__}: {error}")

    def main() -> None:
        overrides = sys.argv[1:]
        find_modules_here()
        quieten_libraries()
        # Hydra's own flags (--multirun, --help, --cfg) have their own messages.
        if not any(word.startswith("-") for word in overrides) and (problem := explain_bad_overrides(overrides)):
            sys.exit(f"{problem}")
        compose_and_run()

    return main
