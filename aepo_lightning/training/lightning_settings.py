"""What Lightning must be told where rollouts are made between epochs."""

import logging
import signal
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from aepo_lightning.distributed.ranks import guard_fit
from aepo_lightning.errors import ConfigError

logger = logging.getLogger(__name__)

_FEWER = "What was rolled out for the other optimiser steps would be dropped: ask for fewer `questions_per_iteration`."
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
    "overfit_batches": ((None, 0), f"{_FEWER} To learn a few questions by heart, give a task that has no others."),
    "limit_train_batches": ((None, 0, 1.0), _FEWER),
    "limit_val_batches": (
        (None, 0, 1.0),
        "A batch is what is evaluated together: set `num_val_questions`, for all batches on all ranks.",
    ),
    "max_time": (
        (None,),
        "It ends a run in the middle of an iteration: add lightning.pytorch.callbacks.Timer with `interval: epoch`.",
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
    is_trial = bool(options.get("fast_dev_run"))  # it sets limits of its own
    for name, (harmless, advice) in _REFUSED.items():
        value = options.get(name)
        if not (_is_among(value, harmless) or (is_trial and name.startswith("limit_"))):
            choices = "".join(f" or {each}" for each in harmless if each)
            found = getattr(value, "value", value)  # of an enumeration, the word that was given
            raise ConfigError(f"`{name}` must be left out{choices}, but got {found}. {advice}")


def _is_among(value: object, harmless: tuple[object, ...]) -> bool:
    """Return whether a value is one of these; as a limit, 1 is one batch, unlike the 1.0 that stands for all."""
    return any(value == each and not (type(value) is int and type(each) is float) for each in harmless)


def check_trainer(trainer: Trainer) -> None:
    """Do what `check_options` does for a trainer that was built, whichever way its options came.

    Raises:
        ConfigError: If an option, or a callback that stands for one, has no place in this training.
    """
    check_options({name: getattr(trainer, name, None) for name in (*_REFUSED, "fast_dev_run")})
    callbacks: Any = trainer  # its attribute is not declared
    for callback in callbacks.callbacks:
        if isinstance(callback, Timer) and callback._interval != "epoch":
            raise ConfigError(
                f"`interval` of {type(callback).__name__} must be epoch, but got step. It would end a "
                "run in the middle of an iteration, whose other rollouts would be dropped."
            )
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
        ConfigError: If the trainer wants its loaders read again after some other number of epochs, or would end in the
            middle of an iteration.
    """
    settings: Any = trainer  # some of its public attributes are not declared
    if trainer.max_steps > 0 and trainer.max_steps % num_steps and not settings.fast_dev_run:
        raise ConfigError(
            f"`max_steps` must be a multiple of {num_steps}, the optimiser steps of an iteration, but got "
            f"{trainer.max_steps}. Set `max_epochs`, which counts iterations; the rest of one would be dropped."
        )
    name = "reload_dataloaders_every_n_epochs"
    check_options({name: getattr(settings, name)})
    settings.reload_dataloaders_every_n_epochs = 1
    trainer.num_sanity_val_steps = 0
    for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop):
        loop.inference_mode = False
    _log_every_iteration(trainer, num_steps)
    if not has_validation:
        trainer.limit_val_batches = 0  # of a loader without batches Lightning would warn


def expect_iteration(trainer: Trainer, num_steps: int) -> None:
    """Let the coming iteration leave a point in the logs, and log how many of its optimiser steps will not be taken.

    That is none, unless the run had other settings before, or steps without a prompt that fits were left out: the check
    of `max_steps` supposes iterations of equal length.

    Args:
        trainer: Before it takes these steps.
        num_steps: Optimiser steps that were rolled out.
    """
    _log_every_iteration(trainer, num_steps)
    num_left = trainer.max_steps - trainer.global_step
    if trainer.max_steps > 0 and num_left < num_steps and not getattr(trainer, "fast_dev_run", False):
        logger.warning(
            "`max_steps=%d` ends the run in the middle of this iteration: %d of its %d optimiser steps were rolled out "
            "and are not taken. Set `max_epochs` to count iterations.",
            trainer.max_steps,
            num_steps - num_left,
            num_steps,
        )


def _log_every_iteration(trainer: Trainer, num_steps: int) -> None:
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
