"""Texts, pictures and tables for whatever logger takes them.

TensorBoard's writer is known by its methods; so are Lightning's loggers with `log_image`, `log_text` and `log_table`
(W&B's, and `TrackioLogger`). MLflow keeps them as artifacts of the run. Other loggers, such as CSV, take numbers only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import MLFlowLogger
from numpy.typing import NDArray

from aepo_lightning.callbacks.drawing import Picture

Cell = str | float | int


def log_text(trainer: L.Trainer, name: str, text: str) -> None:
    """Give a text in Markdown to the loggers, at the present optimiser step."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if callable(log := getattr(logger, "log_text", None)):
            log(name, columns=["text"], data=[[text]], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{name}/{step:08}.md")
        elif add := _method(logger, "add_text"):
            add(name, text, step)


def log_picture(trainer: L.Trainer, name: str, picture: Picture) -> None:
    """Give a picture to the loggers, at the present optimiser step."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if callable(log := getattr(logger, "log_image", None)):
            log(name, [picture], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, f"{name}/{step:08}.png")
        elif add := _method(logger, "add_image"):
            add(name, picture, step, dataformats="HWC")


def log_table(trainer: L.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Give a table to the loggers, at the present optimiser step; TensorBoard gets it as text."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if callable(log := getattr(logger, "log_table", None)):
            log(name, columns=list(columns), data=[list(row) for row in rows], step=step)
        elif isinstance(logger, MLFlowLogger):
            # The layout in which MLflow itself keeps tables; its own `log_table` wants pandas.
            table = {"columns": list(columns), "data": [list(row) for row in rows]}
            logger.experiment.log_dict(logger.run_id, table, f"{name}/{step:08}.json")
        elif add := _method(logger, "add_text"):
            add(name, "\n".join(_markdown(columns, rows)), step)


def log_histogram(trainer: L.Trainer, name: str, values: NDArray[np.float64]) -> None:
    """Give numbers to loggers that bin them by themselves, as TensorBoard does, at the present optimiser step."""
    for logger in trainer.loggers:
        if len(values) and (add := _method(logger, "add_histogram")):
            add(name, values, trainer.global_step)


def _method(logger: Any, name: str) -> Callable[..., Any] | None:
    method = getattr(getattr(logger, "experiment", None), name, None)
    return method if callable(method) else None


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    for row in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |"
