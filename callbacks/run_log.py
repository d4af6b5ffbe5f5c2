"""What a run says while it goes on: bars on a terminal, plain lines everywhere else."""

import sys
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from aepo_lightning.errors import ConfigError

_ITERATION = {
    "reward": "rollout/reward",
    "pass@1": "rollout/correct_fraction",
    "entropy": "train/entropy",
    "loss": "train/loss",
}
"""The columns of an iteration, by what they show. pass@1 is the share of trajectories that are right."""
_HELD_OUT = {"reward": "val/reward", "pass@1": "val/pass@1", "entropy": "val/entropy", "loss": ""}
"""The same columns for held-out questions; without a name, nothing."""

_COLD_START = "coldstart/val_loss"


def choose_progress(every_s: float = 30.0) -> ProgressBar:
    """Return Lightning's bar if the standard output is a terminal, else `RunLog`: a file wants lines.

    Args:
        every_s: Seconds from one line to the next within an iteration.

    Raises:
        ConfigError: If `every_s` is negative.
    """
    log = RunLog(every_s)
    return TQDMProgressBar() if sys.stdout.isatty() else log


class RunLog(ProgressBar):
    """Writes a run to the standard output as plain lines.

    Iterations and validations become rows of one table: the stage (`train`, `held out`), the iteration, mean reward,
    pass@1, entropy (nats), loss, and the seconds since training began, for a validation those that it took. Entropy and
    loss of an iteration are those of its last optimiser step. Training without rollouts
    becomes a line with what it shows in its bar, and so does whatever takes longer than `every_s` between two optimiser
    steps or more. No number is logged.
    """

    def __init__(self, every_s: float = 30.0) -> None:
        """Keep the interval.

        Args:
            every_s: Seconds from one line to the next within an iteration.

        Raises:
            ConfigError: If it is negative.
        """
        super().__init__()
        if not every_s >= 0:
            raise ConfigError(f"`every_s` must be at least 0, but got {every_s}. Use 0 for a line at every step.")
        self._every_s = every_s
        self._is_on = True
        self._has_header = False
        self._fit_start = self._validation_start = self._last = 0.0

    @override
    def disable(self) -> None:
        """Write nothing. Lightning asks for it on every rank but the first."""
        self._is_on = False

    @override
    def enable(self) -> None:
        """Write again."""
        self._is_on = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write what Lightning's `self.print` was given."""
        self._write(kwargs.get("sep", " ").join(str(value) for value in args))

    def _write(self, line: str) -> None:
        self._last = perf_counter()
        if self._is_on:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._fit_start = self._last = perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Write a line if the last one is old, and one for the first of a number of steps that was asked for."""
        is_first = trainer.global_step == 1 and trainer.max_steps > 0
        if is_first or perf_counter() - self._last >= self._every_s:
            self._write_step(trainer, pl_module)

    def _write_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shown = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        of = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        figures = ", ".join(f"{name} {_format(value)}" for name, value in shown.items())
        self._write(f"step {trainer.global_step}{of}: {figures}, {perf_counter() - self._fit_start:.0f} s")

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row of an iteration, or the last line of training without rollouts."""
        if not _has_rollouts(trainer):
            self._write_step(trainer, pl_module)
            return
        seconds = perf_counter() - self._fit_start
        self._write_row("train", trainer.current_epoch, trainer.callback_metrics, _ITERATION, seconds)

    def _write_row(
        self, stage: str, iteration: int, metrics: Mapping[str, Any], names: Mapping[str, str], seconds: float
    ) -> None:
        """Write a row of the table, with its heading if it is the first."""
        if not self._has_header:
            self._write(_row(("stage", "iteration", *names, "seconds")))
            self._has_header = True
        cells = (_cell(metrics, name) for name in names.values())
        self._write(_row((stage, str(iteration), *cells, f"{seconds:.0f}")))

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._validation_start = perf_counter()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write how many of the held-out questions were solved, or how likely the held-out demonstrations are."""
        found, seconds = trainer.callback_metrics, perf_counter() - self._validation_start
        if trainer.sanity_checking:
            return
        if "val/reward" in found:
            self._write_row("held out", trainer.current_epoch, found, _HELD_OUT, seconds)
        elif _COLD_START in found:
            self._write(f"validation: {_COLD_START} {_cell(found, _COLD_START)}, {seconds:.0f} s")


def _row(cells: Sequence[str]) -> str:
    return f"{cells[0]:<9}" + "".join(f"{cell:>10}" for cell in cells[1:])


def _has_rollouts(trainer: L.Trainer) -> bool:
    return "rollout/unscored_fraction" in trainer.callback_metrics


def _cell(metrics: Mapping[str, Any], name: str) -> str:
    return f"{float(metrics[name]):.4f}" if name in metrics else "-"


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
