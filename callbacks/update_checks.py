"""What the first updates of a run show: whether the right tokens are trained, and whether clipping ever acts."""

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.contracts.mask_audit import mask_problem
from aepo_lightning.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)

_BOUNDS = ("train/clip_fraction_high", "train/clip_fraction_low")
_DUAL, _RATIO, _DISTANCE = "train/clip_fraction_dual", "train/importance_ratio", "train/approx_kl"
_GRADIENT = "train/grad_norm"


class UpdateChecks(L.Callback):
    """Looks at the first optimiser steps of a run. It computes nothing with the network, and logs no number.

    The rows of the first step are compared with the trees that they come from: what is trained must be what the policy
    sampled, with the log-probs that the engine has reported. A difference ends the run before the step is taken.

    A clip range that no token has been beyond in the first iterations gets one warning: an objective that differs from
    others beyond the range only, such as EBPO, is none of its own then. Where each iteration is one step on fresh
    rollouts, every ratio is exactly 1, and the warning says that.
    """

    def __init__(self, num_iterations: int = 5) -> None:
        """Keep the setting.

        Args:
            num_iterations: After so many without a clipped token there is a warning.

        Raises:
            ConfigError: If it is not positive.
        """
        super().__init__()
        if num_iterations < 1:
            raise ConfigError(f"`num_iterations` must be at least 1, but got {num_iterations}. Drop the callback.")
        self._num_iterations = num_iterations
        self._has_audited = False
        self._num_left = num_iterations
        self._num_steps = self._num_on_policy = 0
        self._ratios: list[float] = []

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare the first step with the trees.

        Raises:
            TrainingError: If it would train on other tokens than those that the policy sampled.
        """
        if self._has_audited or not isinstance(batch, Minibatch):
            return
        self._has_audited = True
        trees = rollouts_of(trainer, "trees").trees
        for each in batch.micro_batches:
            if problem := mask_problem(trees, each):
                raise TrainingError(f"{problem} Nothing was trained. See what builds the batches of this run.")
        num_rows = sum(int((each.lengths > 0).sum()) for each in batch.micro_batches)
        _say("The first step trains on sampled tokens only, as the trees of its %d trajectories say.", num_rows)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Note whether a token was beyond the clip range."""
        found = trainer.callback_metrics
        if self._num_left <= 0:
            return
        if not all(name in found for name in _BOUNDS) or _clipped(found):
            self._num_left = 0  # there is nothing to say, now or later
            return
        if float(found.get(_GRADIENT, 1.0)) == 0.0:
            return  # nothing was learned: another warning says why
        self._num_steps += 1
        self._num_on_policy += batch_idx == 0 and float(found.get(_DISTANCE, 1.0)) == 0.0
        self._ratios.append(float(found.get(_RATIO, 1.0)))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn after the last of the first iterations."""
        if self._num_left <= 0:
            return
        self._num_left -= 1
        if self._num_left or not self._num_steps:
            return
        if self._num_on_policy == self._num_steps:
            _warn(
                "Every importance ratio of the first %d optimiser steps is exactly 1, because each is the only one on "
                "its rollouts: clip ranges, and what the objective does beyond them, have no effect. For several steps "
                "on the same rollouts lower `experience.questions_per_step` or raise `experience.num_epochs`.",
                self._num_steps,
            )
            return
        _warn(
            "No token was beyond the clip range in the first %d optimiser steps (mean ratios %.5f to %.5f): what the "
            "objective does there has had no effect. A higher `module.optimizer.lr`, more steps of an iteration "
            "(`experience.questions_per_step`), or a narrower range (`algorithm.objective.clip_range_high`) bring "
            "tokens there, if that is wanted.",
            self._num_steps,
            min(self._ratios),
            max(self._ratios),
        )


def _clipped(metrics: Mapping[str, Any]) -> bool:
    return any(float(metrics.get(name, 0.0)) > 0 for name in (*_BOUNDS, _DUAL))


@rank_zero_only
def _say(message: str, *values: object) -> None:
    logger.info(message, *values)


@rank_zero_only
def _warn(message: str, *values: object) -> None:
    logger.warning(message, *values)
