"""Datasets of the Hugging Face Hub, which the package `datasets` reads."""

from importlib import import_module
from typing import Any

from aepo_lightning.errors import ConfigError


def datasets_package(instead: str) -> Any:
    """Return the package `datasets`.

    Args:
        instead: What to do without it, the end of a sentence.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"Reading from the Hub needs the package `datasets`, but it is not installed: {error}. Install it with "
            f"`pip install 'aepo-lightning[hub]'`, or {instead}."
        ) from error
