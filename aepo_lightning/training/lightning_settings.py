"""What Lightning must be told where rollouts are made between epochs."""

from typing import Any

from lightning import Trainer

from aepo_lightning.errors import ConfigError


def prepare_trainer(trainer: Trainer, num_steps: int, has_validation: bool = True) -> None:
    """Set what rollouts between epochs rest on, whatever the trainer was built with.

    Loaders are read again for every epoch, or each would train on the first rollouts. No validation batch is rolled out
    as a sanity check. Validation is free of inference mode, whose tensors no later update could use. Every iteration
    leaves a point in the logs at least. Training without validation questions asks for no loader of them.

    Args:
        trainer: Before it has read a loader.
        num_steps: Optimiser steps of an iteration.
        has_validation: Whether there are validation questions. Without one validation is skipped.

    Raises:
        ConfigError: If the trainer wants its loaders read again after some other number of epochs.
    """
    settings: Any = trainer  # some of its public attributes are not declared
    if settings.reload_dataloaders_every_n_epochs not in (0, 1):
        raise ConfigError(
            "`reload_dataloaders_every_n_epochs` must be left out or 1, but got "
            f"{settings.reload_dataloaders_every_n_epochs}. Every epoch has rollouts of its own; to train longer on "
            "the same ones ask for more `questions_per_iteration`."
        )
    settings.reload_dataloaders_every_n_epochs = 1
    trainer.num_sanity_val_steps = 0
    for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop):
        loop.inference_mode = False
    log_every_iteration(trainer, num_steps)
    if not has_validation:
        trainer.limit_val_batches = 0  # of a loader without batches Lightning would warn


def log_every_iteration(trainer: Trainer, num_steps: int) -> None:
    """Let iterations of so many optimiser steps leave a point in the logs at least."""
    settings: Any = trainer
    settings.log_every_n_steps = min(settings.log_every_n_steps, num_steps)
