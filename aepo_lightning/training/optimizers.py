"""What makes optimisers and schedulers."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from aepo_lightning.errors import ConfigError

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
