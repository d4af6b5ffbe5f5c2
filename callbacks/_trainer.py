"""What the callbacks ask of the trainer: its rollouts, and loggers that take more than numbers."""

from collections.abc import Callable
from typing import Any

import lightning as L

from aepo_lightning.errors import ConfigError
from aepo_lightning.training.datamodule import RolloutDataModule


def rollout_data(trainer: L.Trainer) -> RolloutDataModule:
    """Return the datamodule that rolls out for this trainer.

    Raises:
        ConfigError: If the trainer has another kind of data.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, RolloutDataModule):
        raise ConfigError(
            f"`datamodule` must be a RolloutDataModule for this callback, but got {type(datamodule).__name__}. "
            "Pass one to `trainer.fit`, or drop the callback."
        )
    return datamodule


def experiment_methods(trainer: L.Trainer, name: str) -> list[Callable[..., Any]]:
    """Return the method `name` (such as TensorBoard's `add_text`) of every logger's experiment that has it."""
    experiments = (getattr(logger, "experiment", None) for logger in trainer.loggers)
    methods = (getattr(experiment, name, None) for experiment in experiments)
    return [method for method in methods if callable(method)]
