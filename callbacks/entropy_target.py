"""Steers the weight of the entropy bonus."""

import math
from typing import Any, Literal

import lightning as L
from typing_extensions import override

from aepo_lightning.callbacks.step_range import StepRange
from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.contracts.policy import EntropyRegularised
from aepo_lightning.errors import ConfigError


class EntropyTarget(L.Callback):
    """Moves the weight of the entropy bonus until the entropy of the rollouts is what is wanted.

    Before the updates of an iteration, the mean entropy H of its rollouts is compared with the target:

        sign           c <- c + step if H < target, else c - step; the bonus has weight c while H < target, else 0
        proportional   c <- c + step * (target - H); the bonus has weight c

    with c kept between `minimum` and `maximum`. The first c is the module's `entropy_coefficient`. Without a target
    nothing is steered.

    Logs `train/entropy_coefficient`, the weight in the updates of the iteration, once per iteration with a target.

    References:
        `sign` is the adaptive entropy control of Skywork-OR1, arXiv:2505.22312, with the constants of its runs: target
        0.2, step 1e-4, weights up to 5e-3. `proportional` is the dual gradient step of soft actor-critic,
        arXiv:1812.05905, eq. 18, on the weight itself, not on its logarithm. Departure from both: one step for each
        iteration, from the engine's entropies of every generated token, a shared one counted once.
    """

    def __init__(
        self,
        target_nats: float | None = None,
        rule: Literal["sign", "proportional"] = "sign",
        step: float = 1e-4,
        minimum: float = 0.0,
        maximum: float = 5e-3,
    ) -> None:
        """Keep the target.

        Args:
            target_nats: Wanted mean entropy of generated tokens, positive. None steers nothing.
            rule: How far the weight moves.
            step: Change of the weight per iteration (`sign`), or per iteration and nat (`proportional`). Positive.
            minimum: Smallest weight, at least 0.
            maximum: Largest weight, at least `minimum`.

        Raises:
            ConfigError: If a setting has no meaning.
        """
        super().__init__()
        if target_nats is not None and not (math.isfinite(target_nats) and target_nats > 0):
            raise ConfigError(
                f"`target_nats` must be None or positive, but got {target_nats}. Use None to steer nothing."
            )
        if rule not in ("sign", "proportional"):
            raise ConfigError(f"`rule` must be 'sign' or 'proportional', but got {rule!r}. Choose one of them.")
        self.coefficient: float | None = None
        self._target = target_nats
        self._rule = rule
        self._range = StepRange(step=step, minimum=minimum, maximum=maximum)
        self._last_epoch: int | None = None

    @property
    def is_steering(self) -> bool:
        """Whether there is a target, so that the weight moves."""
        return self._target is not None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start from the module's weight, or go on with the one of the callback's state.

        Raises:
            ConfigError: If there is a target, but no rollouts or no entropy bonus.
        """
        if stage != "fit" or self._target is None:
            return
        rollouts_of(trainer, "metrics")
        if not isinstance(pl_module, EntropyRegularised):
            raise ConfigError(
                f"The module must have an `entropy_coefficient` to reach `target_nats`, but {type(pl_module).__name__} "
                "has none. Set `target_nats` to None."
            )
        if self.coefficient is None:
            self.coefficient = self._range.within(pl_module.entropy_coefficient)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the weight for the updates on the rollouts just made. Their entropy is a mean over all ranks."""
        if self._target is None or self.coefficient is None or not isinstance(pl_module, EntropyRegularised):
            return
        entropy = rollouts_of(trainer, "metrics").metrics.get("rollout/entropy", self._target)
        # An iteration that goes on from a checkpoint of its middle has had its step.
        if self._last_epoch != trainer.current_epoch:
            self.coefficient = self._range.within(self.coefficient + self._change(entropy, self._target))
            self._last_epoch = trainer.current_epoch
        is_off = self._rule == "sign" and entropy >= self._target
        pl_module.entropy_coefficient = 0.0 if is_off else self.coefficient
        pl_module.log("train/entropy_coefficient", pl_module.entropy_coefficient, sync_dist=True, rank_zero_only=True)

    def _change(self, entropy: float, target: float) -> float:
        step: float = self._range.step
        if self._rule == "proportional":
            return step * (target - entropy)
        return step if entropy < target else -step

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the weight, and the iteration that moved it last."""
        return {"coefficient": self.coefficient, "last_epoch": self._last_epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a saved weight, if there is a target."""
        if self._target is not None and state_dict["coefficient"] is not None:
            self.coefficient = float(state_dict["coefficient"])
            self._last_epoch = state_dict["last_epoch"]
