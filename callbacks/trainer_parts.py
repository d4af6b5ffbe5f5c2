"""What the callbacks ask of the trainer: its rollouts, and loggers that take more than numbers."""

from collections.abc import Callable
from typing import Any, cast

import lightning as L

from aepo_lightning.contracts.rollouts import BranchingRollouts, RepublishingRollouts, Rollouts
from aepo_lightning.errors import ConfigError


def rollouts_of(trainer: L.Trainer, *needs: str) -> Rollouts:
    """Return the rollouts of the present iteration: the trainer's datamodule, or the module itself.

    Args:
        trainer: Its datamodule is asked first.
        needs: Which members of `Rollouts` the callback reads.

    Raises:
        ConfigError: If neither has them.
    """
    return cast(Rollouts, _find(trainer, needs))


def branching_rollouts_of(trainer: L.Trainer) -> BranchingRollouts:
    """Return the same where the branch policy can be read and replaced.

    Raises:
        ConfigError: If neither datamodule nor module has a `branch_policy` and `metrics`.
    """
    return cast(BranchingRollouts, _find(trainer, ("metrics", "branch_policy")))


def republishing_rollouts_of(trainer: L.Trainer) -> RepublishingRollouts:
    """Return the same where it can be told that the weights were replaced.

    Raises:
        ConfigError: If neither datamodule nor module has `weights_were_replaced` and `metrics`.
    """
    return cast(RepublishingRollouts, _find(trainer, ("metrics", "weights_were_replaced")))


def _find(trainer: L.Trainer, needs: tuple[str, ...]) -> object:
    datamodule = getattr(trainer, "datamodule", None)
    candidates = [each for each in (datamodule, trainer.lightning_module) if each is not None]
    for candidate in candidates:
        if all(hasattr(candidate, name) for name in needs):
            return candidate
    missing = " and ".join(
        f"{type(each).__name__} has no {', '.join(f'`{name}`' for name in needs if not hasattr(each, name))}"
        for each in candidates
    )
    missing = missing or "the trainer has neither"
    raise ConfigError(
        f"The datamodule or the module must have {', '.join(f'`{name}`' for name in needs)} for this callback, as "
        f"`contracts.rollouts` describes, but {missing}. Pass a RolloutDataModule to `trainer.fit`, add what is "
        "missing, or drop the callback."
    )


def experiment_methods(trainer: L.Trainer, name: str) -> list[Callable[..., Any]]:
    """Return the method `name` (such as TensorBoard's `add_text`) of every logger's experiment that has it."""
    experiments = (getattr(logger, "experiment", None) for logger in trainer.loggers)
    methods = (getattr(experiment, name, None) for experiment in experiments)
    return [method for method in methods if callable(method)]
