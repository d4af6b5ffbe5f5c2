"""A limit on the wall time of training, kept by not beginning an iteration that would exceed it."""

import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

import lightning as L
from typing_extensions import override

from aepo_lightning.distributed.collectives import all_reduce

logger = logging.getLogger(__name__)

_NUM_RECENT = 5
"""Iterations whose longest is taken for the length of the next one."""


class RemainingTime:
    """Says whether there is time for another iteration."""

    def __init__(self, seconds: float, clock: Callable[[], float] = perf_counter) -> None:
        """Start now.

        Args:
            seconds: How much time there is.
            clock: Seconds from any moment on.
        """
        self._seconds = seconds
        self._clock = clock
        self._start = self._last = clock()
        self._recent: deque[float] = deque(maxlen=_NUM_RECENT)

    def is_enough(self) -> bool:
        """Note the end of an iteration, and return whether one as long as the longest of the last five still fits."""
        now = self._clock()
        self._recent.append(now - self._last)
        self._last = now
        return now - self._start + max(self._recent) <= self._seconds

    def __str__(self) -> str:
        """Return the account that the last answer rests on."""
        spent = self._last - self._start
        return f"{spent:.0f} s of {self._seconds:.0f} s are spent, and another may take {max(self._recent):.0f} s"


class TimeLimit(L.Callback):
    """Ends training between two iterations, the way `max_epochs` does: with a checkpoint, and what follows it.

    After each iteration the longest of the last five, their validations and checkpoints included, is added to the time
    that has passed; if that exceeds the limit, no further iteration begins. One is made in any case. All ranks stop
    together as soon as one of them must.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = perf_counter) -> None:
        """Keep the limit.

        Args:
            seconds: From the start of `fit` on.
            clock: Seconds from any moment on.
        """
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._remaining: RemainingTime | None = None

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._remaining = RemainingTime(self._seconds, self._clock)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End training if another iteration would exceed the limit."""
        assert self._remaining is not None, "`on_fit_start` runs first"
        if not all_reduce([not self._remaining.is_enough()], "max")[0]:
            return
        settings: Any = trainer  # the attribute is not declared
        settings.should_stop = True
        number = trainer.current_epoch + 1
        if trainer.is_global_zero and number != trainer.max_epochs:
            logger.info("Training ends after %d iterations: %s.", number, self._remaining)
