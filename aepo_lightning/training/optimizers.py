"""What makes optimisers and schedulers."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import LBFGS, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from aepo_lightning.errors import ConfigError
from aepo_lightning.training.optimizer_settings import rates_of

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

DEFAULT_LR = 1e-6


def choose_optimizer(lr: float | None, optimizer: OptimizerFactory | None) -> OptimizerFactory:
    """Return the optimizer that was given, or AdamW without weight decay at a rate.

    Raises:
        ConfigError: If both are given, or the rate is not positive.
    """
    if optimizer is not None:
        if lr is not None:
            raise ConfigError(
                f"`lr` must be left out beside `optimizer`, but got {lr}. Give the rate to the optimizer."
            )
        return optimizer
    rate = DEFAULT_LR if lr is None else lr
    if not rate > 0:
        raise ConfigError(f"`lr` must be positive, but got {rate}.")
    return partial(AdamW, lr=rate, weight_decay=0.0)


def check_factories(optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None) -> None:
    """Refuse a class that no run can use, as far as the factories show which they build, before there is a model.

    Raises:
        ConfigError: If the optimizer takes a step in several evaluations, or the scheduler waits for a metric.
    """
    _check_optimizer(_built_by(optimizer))
    if scheduler is not None:
        _check_scheduler(_built_by(scheduler))


class Built(NamedTuple):
    """An optimizer and what goes with it."""

    optimizer: Optimizer
    scheduler: LRScheduler | None
    rates: Sequence[float]
    """Learning rate of each group of parameters before the scheduler changed it."""

    def for_lightning(self) -> OptimizerLRScheduler:
        """Return both as `configure_optimizers` does."""
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler}}


def build_both(optimizer: OptimizerFactory, scheduler: SchedulerFactory | None, network: nn.Module) -> Built:
    """Build the optimizer of what is trained of a network, and its scheduler if there is one.

    Raises:
        ConfigError: If a factory returns something else, or what cannot be stepped here.
    """
    built = _optimizer_of(optimizer([each for each in network.parameters() if each.requires_grad]))
    rates = rates_of(built)
    return Built(built, None if scheduler is None else _scheduler_of(scheduler(built)), rates)


def _optimizer_of(built: object) -> Optimizer:
    _check_optimizer(type(built))
    if not isinstance(built, Optimizer):
        raise ConfigError(f"`optimizer` must return a torch optimizer, but got {_shown(built)}. {_PARTIAL}")
    return built


def _scheduler_of(built: object) -> LRScheduler:
    _check_scheduler(type(built))
    if not isinstance(built, LRScheduler):
        raise ConfigError(f"`scheduler` must return a torch LRScheduler, but got {_shown(built)}. {_PARTIAL}")
    return built


def step_scheduler(module: LightningModule) -> None:
    """Step the scheduler of a module that steps its optimizer itself, where it has one."""
    scheduler = module.lr_schedulers()
    if isinstance(scheduler, LRScheduler):
        scheduler.step()


_PARTIAL = "Name its class with `_partial_: true`, or pass a function that builds it."


def _built_by(factory: object) -> object:
    """Return the class that a factory calls, where it shows: a class, or `partial` of one."""
    return factory.func if isinstance(factory, partial) else factory


def _check_optimizer(kind: object) -> None:
    if isinstance(kind, type) and issubclass(kind, LBFGS):
        raise ConfigError(
            f"`optimizer` must step once for each batch, but got {kind.__name__}, which evaluates the loss several "
            "times in a step. Use torch.optim.AdamW or another of its kind."
        )


def _check_scheduler(kind: object) -> None:
    if isinstance(kind, type) and issubclass(kind, ReduceLROnPlateau):
        raise ConfigError(
            f"`scheduler` must be one that steps without a metric, but got {kind.__name__}: it is stepped after every "
            "optimiser step, when no metric of this policy is known. Use one that follows the steps, such as "
            "torch.optim.lr_scheduler.CosineAnnealingLR or LinearLR."
        )


def _shown(value: object) -> str:
    return type(value).__name__
