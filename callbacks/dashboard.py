"""The first screen of a run in TensorBoard, and its hyper-parameters in every logger."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from aepo_lightning.callbacks.layout import FINAL_METRICS, custom_scalars
from aepo_lightning.callbacks.trainer_parts import experiment_methods
from aepo_lightning.errors import ConfigError

Setting = str | float | int | bool


class Dashboard(L.Callback):
    """Writes the layout of custom scalars and the hyper-parameters, once for each run.

    The layout is that of `callbacks/layout.py`; loggers with TensorBoard's `add_custom_scalars` get it. In its HParams
    tab a run stands beside others from its start on, with the last values of `FINAL_METRICS`, as one that is going on
    until its training ends: what failed or was stopped may be resumed. Other loggers get the hyper-parameters in their
    own way. Nothing is logged.
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
        for logger in self._with_hparams_tab(trainer):
            # The logger's own `log_hyperparams` writes a first value of each metric, and a run's end at its start.
            experiment, start, _ = self._session()
            for summary in (experiment, start):
                logger.experiment.file_writer.add_summary(summary)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the session of the HParams tab; not called where the training was cut off."""
        if trainer.is_global_zero:
            for logger in self._with_hparams_tab(trainer):
                logger.experiment.file_writer.add_summary(self._session()[-1])

    def _with_hparams_tab(self, trainer: L.Trainer) -> list[TensorBoardLogger]:
        if not self._hyper_parameters:
            return []
        return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]

    def _session(self) -> Sequence[Summary]:
        """Return what the HParams tab wants: what is compared, the start and the end of a session.

        It takes the metrics from what is logged under their names.
        """
        named = dict.fromkeys(FINAL_METRICS, 0.0)
        found: Sequence[Summary] = hparams(self._hyper_parameters, named)  # type: ignore[no-untyped-call]
        return found
