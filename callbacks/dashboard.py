"""The first screen of a run in TensorBoard, and its hyper-parameters in every logger."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from aepo_lightning.callbacks.layout import FINAL_METRICS, custom_scalars
from aepo_lightning.callbacks.trainer_parts import experiment_methods
from aepo_lightning.errors import ConfigError

Setting = str | float | int | bool


class Dashboard(L.Callback):
    """Writes the layout of custom scalars and the hyper-parameters, once for each run.

    The layout is that of `callbacks/layout.py`; loggers with TensorBoard's `add_custom_scalars` get it. In its HParams
    tab a run stands beside others from its start on, with the last values of `FINAL_METRICS`; other loggers get the
    hyper-parameters in their own way. Nothing is logged.
    """

    def __init__(self, hyper_parameters: Mapping[str, Any] | None = None) -> None:
        """Keep the hyper-parameters.

        Args:
            hyper_parameters: What runs are to be compared by. What is None is left out.

        Raises:
            ConfigError: If one is no text, number or truth value.
        """
        super().__init__()
        given = dict(hyper_parameters or {})
        for name, value in given.items():
            if value is not None and not isinstance(value, Setting):
                raise ConfigError(
                    f"`hyper_parameters.{name}` must be one value, but got {value!r}. Name a single setting."
                )
        self._hyper_parameters = {name: value for name, value in given.items() if value is not None}

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the hyper-parameters to loggers other than TensorBoard's, some of which take them at the start only."""
        if trainer.is_global_zero and self._hyper_parameters:
            for logger in trainer.loggers:
                if not isinstance(logger, TensorBoardLogger):
                    logger.log_hyperparams(self._hyper_parameters)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the layout, and begin the session of the HParams tab."""
        if not trainer.is_global_zero:
            return
        for add_custom_scalars in experiment_methods(trainer, "add_custom_scalars"):
            add_custom_scalars(custom_scalars())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self._hyper_parameters:
                _write_session(logger, self._hyper_parameters)


def _write_session(logger: TensorBoardLogger, hyper_parameters: Mapping[str, Setting]) -> None:
    """Begin a session of the HParams tab, which takes the metrics from what is logged under their names.

    The logger's own `log_hyperparams` would write a first value of each, and takes the metrics of its first call only.
    """
    writer = logger.experiment.file_writer
    named = dict.fromkeys(FINAL_METRICS, 0.0)
    experiment, start, _ = hparams(dict(hyper_parameters), named)  # type: ignore[no-untyped-call]
    for summary in (experiment, start):
        writer.add_summary(summary)
