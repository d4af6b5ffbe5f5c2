"""Where the wall time of an iteration goes, and what it takes of memory and GPUs."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from aepo_lightning.callbacks.device_figures import (
    flops_per_token,
    gpu_memory_gib,
    host_memory_gib,
    model_flops_utilization,
)
from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.distributed.collectives import all_reduce

_TOTALS = ("iterations", "iteration_s", "rollout_s", "experience_s", "update_s", "tokens", "trajectories")


class Throughput(L.Callback):
    """Measures the update phase, the whole iteration, and what it produced per second.

    An iteration lasts from the end of the one before (the first: from the start of its rollouts) to the end of its
    epoch. Validation is left out; saving checkpoints and other callbacks are in. Times are those of rank zero, tokens
    and trajectories those of all ranks.

    Logs `time/update_s`, `time/other_s`, `time/iteration_s`, `throughput/tokens_per_s`,
    `throughput/update_tokens_per_s` and `throughput/trajectories_per_s`, beside the `time/rollout_s` and
    `time/experience_s` of the datamodule; `memory/host_gib`, and on GPUs `memory/gpu_gib` and `throughput/update_mfu`.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.totals: dict[str, float] = dict.fromkeys(_TOTALS, 0.0)
        self._iteration_start: float | None = None
        self._validation_start = 0.0
        self._batch_start = 0.0
        self._validation_s = 0.0
        self._update_s = 0.0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to measure.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "trees", "metrics")
            self._iteration_start = None

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of the first iteration, whose rollouts are made before any hook of the loop."""
        if self._iteration_start is None:
            metrics = rollouts_of(trainer, "trees", "metrics").metrics
            self._start(perf_counter() - metrics["time/rollout_s"] - metrics["time/experience_s"])

    def _start(self, now: float) -> None:
        self._iteration_start = now
        self._validation_s = self._update_s = 0.0

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when an optimiser step begins."""
        self._batch_start = perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Add an optimiser step."""
        self._update_s += perf_counter() - self._batch_start

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note when validation begins."""
        self._validation_start = perf_counter()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a validation, which is not part of the iteration."""
        self._validation_s += perf_counter() - self._validation_start

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the iteration, unless its beginning was in another process."""
        if self._iteration_start is None:
            return
        now = perf_counter()
        rollouts = rollouts_of(trainer, "trees", "metrics")
        iteration_s = now - self._iteration_start - self._validation_s
        rollout_s = rollouts.metrics["time/rollout_s"]
        # Every rank has as many trajectories; the datamodule's rate is already that of all ranks.
        num_trajectories = trainer.world_size * sum(len(tree.leaves) for tree in rollouts.trees)
        num_tokens = rollouts.metrics["rollout/tokens_per_s"] * rollout_s
        experience_s = rollouts.metrics["time/experience_s"]
        values = {
            "time/update_s": self._update_s,
            "time/other_s": iteration_s - rollout_s - experience_s - self._update_s,
            "time/iteration_s": iteration_s,
            "throughput/tokens_per_s": num_tokens / iteration_s,
            "throughput/trajectories_per_s": num_trajectories / iteration_s,
            **host_memory_gib(),
            **_of_all_ranks(gpu_memory_gib(pl_module.device)),
            **self._of_update(pl_module, rollouts.metrics),
        }
        pl_module.log_dict(values, sync_dist=True, rank_zero_only=True)
        found = (1.0, iteration_s, rollout_s, experience_s, self._update_s, num_tokens, float(num_trajectories))
        self.totals = {name: self.totals[name] + value for name, value in zip(_TOTALS, found, strict=True)}
        self._start(now)

    def _of_update(self, pl_module: L.LightningModule, metrics: Mapping[str, float]) -> dict[str, float]:
        num_tokens = metrics.get("experience/num_tokens_run", 0.0)
        if not (num_tokens and self._update_s):
            return {}
        rate = num_tokens / self._update_s
        dtype, num_ranks = getattr(pl_module, "compute_dtype", torch.float32), pl_module.trainer.world_size
        mfu = model_flops_utilization(rate * flops_per_token(pl_module), pl_module.device, dtype, num_ranks)
        return {"throughput/update_tokens_per_s": rate, **mfu}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the totals of the run: iterations, seconds of each phase, tokens and trajectories."""
        return {"totals": dict(self.totals)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding to saved totals."""
        self.totals = {name: float(state_dict["totals"][name]) for name in _TOTALS}


def _of_all_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return the largest of each value over the ranks, which all have the same names. Collective."""
    return dict(zip(values, all_reduce(list(values.values()), "max"), strict=True))
