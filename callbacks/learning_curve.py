"""The learning curve of a run as a table, complete after every iteration, and as a picture."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from matplotlib.figure import Figure
from typing_extensions import override

from aepo_lightning.atomic_files import replacing

Row = dict[str, str | float]

ITERATION, HELD_OUT = "iteration", "held out"
_OF_TREES = (
    "reward",
    "correct_fraction",
    "entropy",
    "entropy_after_tool",
    "format_error_fraction",
    "truncated_fraction",
    "num_tool_calls",
    "response_length",
    "zero_variance_groups_fraction",
    "num_branches",
)
"""Of the rollouts of an iteration, and of those over held-out questions."""
_OF_UPDATE = {
    "policy_entropy": "train/entropy",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "num_generated_tokens": "rollout/num_generated_tokens",
    "num_answered_calls": "rollout/num_answered_calls",
    "rollout_s": "time/rollout_s",
    "experience_s": "time/experience_s",
    "tokens_per_s": "rollout/tokens_per_s",
}
_OF_ITERATION = ("rollout/", "experience/", "time/")
_OF_STEP = "train/"
COLUMNS = ("kind", "iteration", "step", "seconds", *_OF_TREES, *_OF_UPDATE)


class LearningCurve(L.Callback):
    """Writes `curve.csv` and `curve.png` into the trainer's `default_root_dir`.

    The table has a row for each iteration (its rollouts, and the last optimiser step on them) and one for each
    validation, those before and after the training included. `correct_fraction` is pass@1, and `step` the number of
    optimiser steps that the weights behind it had seen. `seconds` count from the first row's stage on. The table is
    written anew after each row, the picture after each validation and at the end of training. The rows are in the
    checkpoint, so a resumed run goes on with them. No number is logged.
    """

    def __init__(
        self, clock: Callable[[], float] = perf_counter, *, every_metric: bool = False, has_picture: bool = True
    ) -> None:
        """Start with an empty table.

        Args:
            clock: Seconds from any moment on.
            every_metric: Also write whatever is logged under `rollout/`, `experience/`, `train/`, `time/` and `val/`,
                each in a column of its name. What is logged at every optimiser step is the mean of the iteration.
            has_picture: Draw `curve.png`, too.
        """
        super().__init__()
        self.rows: list[Row] = []
        self._clock = clock
        self._every_metric, self._has_picture = every_metric, has_picture
        self._steps: dict[str, list[float]] = {}
        self._start: float | None = None
        self._step = 0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock."""
        if self._start is None:
            self._start = self._clock()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note which weights the rollouts of the iteration come from."""
        self._step = trainer.global_step
        self._steps = {}

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Note what is logged about an optimiser step."""
        if self._every_metric:
            for name, value in trainer.callback_metrics.items():
                if name.startswith(_OF_STEP):
                    self._steps.setdefault(name, []).append(float(value))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row of an iteration."""
        metrics = trainer.callback_metrics
        found = _taken(metrics, {name: f"rollout/{name}" for name in _OF_TREES} | _OF_UPDATE)
        if self._every_metric:
            found |= _taken(metrics, _prefixed_by(metrics, _OF_ITERATION))
            found |= {name: _rounded(fmean(values)) for name, values in self._steps.items()}
        self._add(trainer, {"kind": ITERATION, "iteration": trainer.current_epoch, "step": self._step, **found})

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row of a validation, unless it is a sanity check."""
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            found = _taken(metrics, {name: f"val/{name}" for name in _OF_TREES})
            if self._every_metric:
                found |= _taken(metrics, _prefixed_by(metrics, "val/"))
            place: Row = {"kind": HELD_OUT, "iteration": trainer.current_epoch, "step": trainer.global_step}
            self._add(trainer, {**place, **found})
            self._draw(trainer)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self._has_picture:
            draw_rows(self.rows).savefig(Path(trainer.default_root_dir) / "curve.png")

    def _add(self, trainer: L.Trainer, row: Row) -> None:
        self.rows.append({**row, "seconds": round(self.seconds(), 2)})
        if trainer.is_global_zero:
            self._write(Path(trainer.default_root_dir))

    def seconds(self) -> float:
        """Return how long the run goes on, as the table counts it."""
        assert self._start is not None, "`setup` runs first"
        return self._clock() - self._start

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "curve.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            others = {name for row in self.rows for name in row} - set(COLUMNS)
            writer = csv.DictWriter(file, (*COLUMNS, *sorted(others)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": [dict(row) for row in self.rows]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with saved rows."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        if self.rows and self._start is not None:
            self._start = self._clock() - float(self.rows[-1]["seconds"])


def _taken(metrics: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    return {column: _rounded(float(metrics[name])) for column, name in names.items() if name in metrics}


def _prefixed_by(metrics: Mapping[str, Any], prefixes: str | tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in metrics if name.startswith(prefixes)}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def draw_rows(rows: Sequence[Mapping[str, str | float]]) -> Figure:
    """Draw pass@1 and reward above, entropies below, over optimiser steps."""
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, kind, column, label, form in (
        (upper, ITERATION, "correct_fraction", "rollouts that are right", "-"),
        (upper, HELD_OUT, "correct_fraction", "held-out pass@1", "o"),
        (upper, ITERATION, "reward", "mean reward of rollouts", "-"),
        (lower, ITERATION, "entropy", "rollouts", "-"),
        (lower, ITERATION, "entropy_after_tool", "rollouts, after tool results", "-"),
        (lower, HELD_OUT, "entropy", "held out", "o"),
    ):
        points = [(row["step"], row[column]) for row in rows if row["kind"] == kind and column in row]
        if points:
            axes.plot(*zip(*points, strict=True), form, label=label, linewidth=1.2)
    for axes, name in ((upper, "pass@1, reward"), (lower, "entropy (nats)")):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    lower.set_xlabel("optimiser step")
    return figure
