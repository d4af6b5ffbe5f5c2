"""Back to the weights of a checkpoint in the middle of a run, which goes on with its next questions."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from aepo_lightning.checkpoints.verification import verify_checkpoint
from aepo_lightning.distributed.collectives import together


def take_back(trainer: L.Trainer, path: Path) -> None:
    """Load weights and optimiser state of a checkpoint of this very run, under any strategy. Collective.

    Learning rates, schedules, the count of steps, random generators, data and callbacks stay as they are.

    Args:
        trainer: Between two iterations.
        path: The same on every rank.

    Raises:
        DataError: If it is damaged. Nothing was changed then.
    """
    together(lambda: verify_checkpoint(path))
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    settings = [{name: _own(value) for name, value in group.items() if name != "params"} for group in groups]
    # What a sharded strategy has is loaded by the first of these, and the others do nothing there.
    checkpoint = trainer.strategy.load_checkpoint(path)
    trainer.strategy.load_model_state_dict(checkpoint, strict=trainer.lightning_module.strict_loading)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    loaded = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    for group, before in zip(loaded, settings, strict=True):
        group.update(before)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
