"""Moves the weight of the entropy bonus towards a schedule of entropies, once `EntropyGuard` has begun to."""

import math
from typing import Any

import lightning as L

from aepo_lightning.callbacks.guard_acts import Schedule, read_schedule, wanted_entropy
from aepo_lightning.callbacks.guard_settings import GuardSettings
from aepo_lightning.contracts.policy import EntropyRegularised


class EntropySteering:
    """c <- c + step * (target - H) in every iteration, within bounds; the rule `proportional` of `EntropyTarget`."""

    def __init__(self, settings: GuardSettings) -> None:
        """Steer nothing yet."""
        self._settings = settings
        self._schedule: Schedule | None = None
        self._coefficient = 0.0
        self._last_epoch = -1

    def begin(self, module: L.LightningModule, baseline: float | None) -> str:
        """Steer from the next iteration on; return what is aimed at.

        Args:
            module: Has the weight.
            baseline: What is aimed at without a target, in nats.
        """
        assert isinstance(module, EntropyRegularised), "the guard's `setup` has checked it"
        schedule = read_schedule(self._settings.target_nats)
        schedule = [(0, baseline)] if schedule is None and baseline is not None else schedule
        if schedule is None:
            return "there is neither a target nor a baseline yet, so nothing is steered"
        self._schedule = schedule
        self._coefficient = self._bounded(module.entropy_coefficient)
        aims = ", ".join(f"{nats:.3g} nats from iteration {at} on" for at, nats in schedule)
        return f"the weight of the entropy bonus is steered from {self._coefficient:.3g} on; wanted: {aims}"

    def steer(self, module: L.LightningModule, epoch: int, entropy: float) -> None:
        """Set the weight for the updates of an iteration, whose rollouts had an entropy in nats."""
        if self._schedule is None or not isinstance(module, EntropyRegularised):
            return
        # An iteration that goes on from a checkpoint of its middle has had its step.
        if epoch != self._last_epoch and math.isfinite(entropy):
            distance = wanted_entropy(self._schedule, epoch) - entropy
            self._coefficient = self._bounded(self._coefficient + self._settings.coefficient_step * distance)
            self._last_epoch = epoch
        module.entropy_coefficient = self._coefficient

    def _bounded(self, value: float) -> float:
        low, high = map(float, self._settings.coefficient_range)
        return min(max(value, low), high)

    def state_dict(self) -> dict[str, Any]:
        """Return schedule, weight and the iteration that moved it last."""
        schedule = None if self._schedule is None else [list(pair) for pair in self._schedule]
        return {"schedule": schedule, "coefficient": self._coefficient, "last_epoch": self._last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        schedule = state["schedule"]
        self._schedule = None if schedule is None else [(int(at), float(nats)) for at, nats in schedule]
        self._coefficient, self._last_epoch = float(state["coefficient"]), int(state["last_epoch"])
