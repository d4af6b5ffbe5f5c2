"""Watches for a collapse of the policy's entropy."""

import math
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from aepo_lightning.callbacks.trainer_parts import rollouts_of
from aepo_lightning.errors import ConfigError

_ADVICE = (
    "Its trajectories are nearly the same, so their advantages are nearly zero. Go back to an earlier checkpoint and "
    "try a lower learning rate, a larger `clip_range_high`, `preserve_high=1` (EBPO), the entropy-aware advantage "
    "(`shaping`), or an entropy bonus (`entropy_coefficient`, `EntropyTarget`)."
)


class EntropyGuard(L.Callback):
    """Warns or stops when the rollout entropy stays low although the task is not solved.

    A policy that solves its task is certain, and rightly so; one that is certain before that explores no more.
    Nothing is logged.
    """

    def __init__(
        self,
        minimum_nats: float = 0.005,
        patience: int = 5,
        until_reward: float | None = 0.9,
        action: Literal["warn", "stop"] = "warn",
    ) -> None:
        """Keep the limits.

        Args:
            minimum_nats: The mean entropy of generated tokens, in nats, that counts as low is below this. Positive.
            patience: Iterations in a row that must be low, at least 1.
            until_reward: Mean reward from which on low entropy is no collapse. None looks at the entropy alone.
            action: `warn` once in a run, or `stop` after the iteration (with the same words).

        Raises:
            ConfigError: If a setting has no meaning.
        """
        super().__init__()
        if not (math.isfinite(minimum_nats) and minimum_nats > 0):
            raise ConfigError(f"`minimum_nats` must be positive and finite, but got {minimum_nats}. Drop the callback.")
        if patience < 1:
            raise ConfigError(f"`patience` must be at least 1, but got {patience}. Give a number of iterations.")
        if until_reward is not None and not math.isfinite(until_reward):
            raise ConfigError(f"`until_reward` must be None or finite, but got {until_reward}. Use None for always.")
        if action not in ("warn", "stop"):
            raise ConfigError(f"`action` must be 'warn' or 'stop', but got {action!r}. Choose one of them.")
        self._minimum_nats = minimum_nats
        self._patience = patience
        self._until_reward = until_reward
        self._action = action
        self._num_low = 0
        self._has_warned = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are rollouts to watch.

        Raises:
            ConfigError: If the trainer's data is of another kind.
        """
        if stage == "fit":
            rollouts_of(trainer, "metrics")

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the rollouts of the iteration. The numbers are means over all ranks, so all ranks agree."""
        metrics = rollouts_of(trainer, "metrics").metrics
        entropy, reward = metrics.get("rollout/entropy", math.inf), metrics.get("rollout/reward", math.nan)
        is_solved = self._until_reward is not None and reward >= self._until_reward
        self._num_low = self._num_low + 1 if entropy < self._minimum_nats and not is_solved else 0
        if self._num_low < self._patience:
            return
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(self._message(entropy, reward))
        if self._action == "stop":
            trainer.should_stop = True

    def _message(self, entropy: float, reward: float) -> str:
        unsolved = "" if self._until_reward is None else f", below {self._until_reward:g}"
        verb = "The run stops" if self._action == "stop" else "The run goes on"
        return (
            f"The entropy of the rollouts was below {self._minimum_nats:g} nats for {self._num_low} iterations "
            f"in a row (now {entropy:.2g}) while their mean reward is {reward:.3g}{unsolved}: the policy has "
            f"collapsed. {verb}. {_ADVICE}"
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return how many iterations in a row were low, and whether that was said."""
        return {"num_low": self._num_low, "has_warned": self._has_warned}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._num_low = int(state_dict["num_low"])
        self._has_warned = bool(state_dict["has_warned"])
