"""Ends the whole job when one rank cannot go on."""

import os
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from aepo_lightning.distributed.ranks import RankWatch, WatchTimes, start_watch, tick, were_cut_off
from aepo_lightning.errors import ConfigError


class RankGuard(L.Callback):
    """Ties the ranks of a job together: when one fails, dies or hangs, all end with its error.

    A rank that raises tells the others, which end within seconds; so does one whose process dies on the same machine. A
    machine that is lost counts as such after `dead_after_s`. When no rank finishes a tree or a batch for
    `stall_after_s`, the rank that does not wait for the others is shown with the place where it stands.

    Put it first, so that no other callback waits for a rank that is gone. Where there is one process it does nothing.
    Nothing is logged.
    """

    def __init__(self, dead_after_s: float = 60.0, stall_after_s: float | None = 3600.0) -> None:
        """Keep the limits, which must be the same on every rank.

        Args:
            dead_after_s: Seconds without a sign of life after which a rank counts as lost.
            stall_after_s: Seconds without progress on any rank after which the job counts as stuck. None waits.

        Raises:
            ConfigError: If a limit is too short to tell anything.
        """
        super().__init__()
        if not dead_after_s >= 5 or not (stall_after_s is None or stall_after_s >= 5):
            raise ConfigError(
                f"`dead_after_s` and `stall_after_s` must be at least 5, but got {dead_after_s} and {stall_after_s}. "
                "Ranks give a sign every second."
            )
        self._times = WatchTimes(dead_after_s=dead_after_s, stall_after_s=stall_after_s)
        self._watch: RankWatch | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start watching when the ranks know each other."""
        if self._watch is None and trainer.world_size > 1:
            self._watch = start_watch(self._times)
            if self._watch is not None:
                _dismiss_observer(trainer)
                for logger in trainer.loggers:
                    self._watch.before_end(partial(logger.finalize, "failed"))
        if self._watch is not None:
            tick()
            self._watch.enter()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the other ranks go."""
        if self._watch is not None:
            self._watch.leave()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the other ranks. Signals that Lightning brings to all ranks are no failure of this one.

        Where all ranks were cut off together, they know; the data tell them once everything is saved.
        """
        if self._watch is not None and not isinstance(exception, SIGTERMException) and not were_cut_off():
            self._watch.report(exception)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the rollouts as progress."""
        tick()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Count an optimiser step as progress."""
        tick()

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a chunk of evaluated questions as progress."""
        tick()


def _dismiss_observer(trainer: L.Trainer) -> None:
    """Take the processes from the thread that would kill this one without a word as soon as one of them has ended.

    Lightning starts it beside the processes that it launches; the watch does its work. Where the kernel does not tell
    of ended processes, it stays.
    """
    launcher: Any = trainer.strategy.launcher
    processes = getattr(launcher, "procs", None)
    if processes and hasattr(os, "pidfd_open"):
        launcher.procs = [*processes]
        processes.clear()  # the list that the thread looks at; it ends when nothing is in it
