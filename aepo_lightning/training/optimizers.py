"""What makes optimisers and schedulers."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


SchedulerFactory = Callable[[Optimizer], LRScheduler]
