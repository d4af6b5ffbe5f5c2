"""What Lightning must be told where rollouts are made between epochs."""

import signal
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from aepo_lightning.distributed.ranks import guard_fit
from aepo_lightning.errors import ConfigError

_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "gradient_clip_val": ((None, 0), "The module scales gradients itself: set `module.max_grad_norm`."),
    "gradient_clip_algorithm": ((None,), "The module scales gradients by their norm: set `module.max_grad_norm`."),
    "accumulate_grad_batches": (
        (None, 1),
        "An optimiser step is one batch of the loader, over as many micro-batches as it takes: set "
        "`experience.questions_per_step` and `experience.max_tokens_per_micro_batch`.",
    ),
    "reload_dataloaders_every_n_epochs": (
        (None, 0, 1),
        "Every epoch has rollouts of its own; to train longer on the same ones ask for more `questions_per_iteration`.",
    ),
}
"""What `Trainer` takes but this training has no use for: values that change nothing, and what does it here."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of the trainer for training of another kind: where Lightning takes the optimiser steps.

    Args:
        options: By the names of `Trainer`, possibly among others.

    Raises:
        ConfigError: If one is set; the message says what does the same here.
    """
    for name, (harmless, advice) in _REFUSED.items():
        if (value := options.get(name)) not in harmless:
            choices = "".join(f" or {each}" for each in harmless if each)
            found = getattr(value, "value", value)  # of an enumeration, the word that was given
            raise ConfigError(f"`{name}` must be left out{choices}, but got {found}. {advice}")


def check_trainer(trainer: Trainer) -> None:
    """Do what `check_options` does for a trainer that was built, whichever way its options came.

    Raises:
        ConfigError: If an option, or a callback that stands for one, has no place in this training.
    """
    check_options({name: getattr(trainer, name, None) for name in _REFUSED})
    callbacks: Any = trainer  # its attribute is not declared
    for callback in callbacks.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            raise ConfigError(
                f"`callbacks` must not have {type(callback).__name__}, but got one. "
                f"{_REFUSED['accumulate_grad_batches'][1]}"
            )


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
    name = "reload_dataloaders_every_n_epochs"
    check_options({name: getattr(settings, name)})
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


def hear_signals(trainer: Trainer) -> None:
    """Have SIGTERM end a trainer that runs, whatever it waits for: Lightning's handler only leaves a note.

    A handler of somebody else stays, and so does Lightning's own where it puts the job back into SLURM's queue.

    Args:
        trainer: One that runs: Lightning puts its handlers in place after every `setup`.
    """
    settings: Any = trainer
    before = settings._signal_connector._original_handlers.get(signal.SIGTERM)
    environment = settings._accelerator_connector.cluster_environment
    is_requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    guard_fit({signal.SIGTERM: before} if before is signal.SIG_DFL and not is_requeued else {})
