"""The entropy curve of a run, as a picture that is readable while the run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from matplotlib.figure import Figure
from matplotlib.image import imsave
from typing_extensions import override

from aepo_lightning.callbacks.drawing import Picture, rasterise
from aepo_lightning.callbacks.logger_media import log_picture
from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.errors import ConfigError

Curve = list[tuple[int, float]]
"""Pairs of a value and, before it, the number of optimiser steps that the measured weights had seen."""

_ENTROPIES = {
    "train/entropy": "policy, per optimiser step",
    "rollout/entropy": "rollouts",
    "rollout/entropy_after_tool": "rollouts, after tool results",
}
_OUTCOMES = {"rollout/reward": "mean reward of rollouts", "val/pass@1": "validation pass@1"}
_OF_ROLLOUTS = ("rollout/entropy", "rollout/entropy_after_tool", "rollout/reward")


class EntropyMonitor(L.Callback):
    """Keeps entropy, reward and pass@1 over the whole run and draws them to a PNG.

    The upper panel has the entropies in nats, the lower one reward and pass@1, both over optimiser steps. The curves
    are in the checkpoint, so a resumed run goes on with them. The picture is `entropy.png` in the folder of the
    checkpoints (without a checkpoint callback: in the trainer's `default_root_dir`), and loggers that take
    pictures get it at the end of the run as `entropy`. No number is logged.
    """

    def __init__(self, output_path: str | None = None, every_n_epochs: int = 10) -> None:
        """Start with empty curves.

        Args:
            output_path: Where the picture goes, ending in `.png`. None chooses as described above.
            every_n_epochs: Iterations from one drawing to the next; the end of the run draws always.

        Raises:
            ConfigError: If the path is no PNG, or the number is not positive.
        """
        super().__init__()
        if output_path is not None and Path(output_path).suffix != ".png":
            raise ConfigError(f"`output_path` must end in .png, but got {output_path!r}. Rename it.")
        if every_n_epochs < 1:
            raise ConfigError(f"`every_n_epochs` must be at least 1, but got {every_n_epochs}. Use 1 for every epoch.")
        self.curves: dict[str, Curve] = {name: [] for name in (*_ENTROPIES, *_OUTCOMES)}
        self._output_path = output_path
        self._every_n_epochs = every_n_epochs

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to watch.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "metrics")

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take what the rollouts of the iteration looked like."""
        self._take(rollouts_of(trainer, "metrics").metrics, _OF_ROLLOUTS, trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Take the entropy of the policy at this optimiser step, measured before its update."""
        self._take(trainer.callback_metrics, ("train/entropy",), trainer.global_step - 1)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take pass@1, unless this is a sanity check or no part of the training."""
        if trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking:
            self._take(trainer.callback_metrics, ("val/pass@1",), trainer.global_step)

    def _take(self, metrics: Mapping[str, Any], names: Sequence[str], step: int) -> None:
        for name in names:
            if name in metrics:
                self.curves[name].append((step, float(metrics[name])))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the picture if it is due."""
        if trainer.is_global_zero and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._write(trainer)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the picture of the whole run and give it to the loggers."""
        if not trainer.is_global_zero:
            return
        log_picture(trainer, "entropy", self._write(trainer))

    def _write(self, trainer: L.Trainer) -> Picture:
        picture = rasterise(draw_curves(self.curves))
        path = self.path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(path, picture)
        return picture

    def path(self, trainer: L.Trainer) -> Path:
        """Return where the picture of a run goes."""
        if self._output_path is not None:
            return Path(self._output_path)
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        return Path(folder or trainer.default_root_dir) / "entropy.png"

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the curves as plain lists."""
        return {"curves": {name: [list(point) for point in curve] for name, curve in self.curves.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with saved curves."""
        saved = state_dict["curves"]
        self.curves = {name: [(int(step), float(value)) for step, value in saved.get(name, [])] for name in self.curves}


def draw_curves(curves: Mapping[str, Curve]) -> Figure:
    """Draw entropies above, reward and pass@1 below, without touching pyplot's global state."""
    # A Figure of its own is drawn by the Agg backend, on any machine and from any thread.
    figure = Figure(figsize=(8, 6), dpi=120)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, labels in ((upper, _ENTROPIES), (lower, _OUTCOMES)):
        for name, label in labels.items():
            steps, values = [step for step, _ in curves[name]], [value for _, value in curves[name]]
            if steps:
                axes.plot(steps, values, label=label, linewidth=1.2, marker="." if len(steps) < 50 else None)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    upper.set_ylabel("entropy (nats)")
    upper.set_ylim(bottom=0.0)
    lower.set_ylabel("reward, pass@1")
    lower.set_xlabel("optimiser step")
    # A layout that is found rather than given draws everything twice.
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.08, top=0.98, hspace=0.06)
    return figure
