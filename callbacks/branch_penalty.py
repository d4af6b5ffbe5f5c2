"""Steers how strongly consecutive branches are penalised."""

from typing import Any

import lightning as L
from typing_extensions import override

from aepo_lightning.callbacks.step_range import StepRange
from aepo_lightning.callbacks.trainer_parts import branching_rollouts_of
from aepo_lightning.contracts.branching import PenalisedBranchPolicy
from aepo_lightning.contracts.rollouts import BranchingRollouts
from aepo_lightning.errors import ConfigError


class BranchPenalty(L.Callback):
    """Moves the penalty per consecutive branch until branches are spread over root chains as wanted.

    After the rollouts of an iteration the measured `rollout/branch_concentration` is compared with the target: above
    it the penalty of the next iteration is one step higher, below it one step lower. An iteration without branches
    measures nothing and moves nothing. Without a target the penalty is constant and only logged.

    Logs `rollout/branch_penalty`, the penalty under which the iteration was rolled out, if the policy has one.

    References:
        AEPO, arXiv:2510.14545, has a constant penalty; the steering is ours.
    """

    def __init__(
        self,
        target_concentration: float | None = None,
        step: float = 0.01,
        minimum: float = 0.0,
        maximum: float = 0.5,
    ) -> None:
        """Keep the target.

        Args:
            target_concentration: Wanted share in (0, 1] of a question's branches that the three root chains with the
                most branches hold. None keeps the penalty constant.
            step: Change of the penalty per iteration, positive.
            minimum: Smallest penalty, at least 0.
            maximum: Largest penalty, at least `minimum`. At 1 the second branch in a row is ruled out.

        Raises:
            ConfigError: If a number is out of range.
        """
        super().__init__()
        if target_concentration is not None and not 0 < target_concentration <= 1:
            raise ConfigError(
                f"`target_concentration` must be None or in (0, 1], but got {target_concentration}. It is a share."
            )
        self.penalty: float | None = None
        self._target = target_concentration
        self._range = StepRange(step=step, minimum=minimum, maximum=maximum)
        self._rollouts: BranchingRollouts | None = None

    @property
    def is_steering(self) -> bool:
        """Whether there is a target, so that the penalty moves."""
        return self._target is not None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start from the penalty of the branch policy, or go on with the one of the callback's state.

        Raises:
            ConfigError: If there is a target, but the branch policy has no penalty.
        """
        if stage != "fit":
            return
        self._rollouts = branching_rollouts_of(trainer)
        if self._target is None:
            return
        policy = self._rollouts.branch_policy
        if not isinstance(policy, PenalisedBranchPolicy):
            raise ConfigError(
                f"`branch_policy` must have a penalty to reach `target_concentration`, but got "
                f"{type(policy).__name__}. Use EntropyBalanced, or set `target_concentration` to None."
            )
        if self.penalty is None:
            self.penalty = policy.penalty_per_step
        self._apply()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the penalty of the rollouts just made and set that of the next ones.

        The next rollouts start right after the end of this epoch, and checkpoints of this epoch must hold the penalty
        that they will use: hence here and not at the end.
        """
        rollouts = branching_rollouts_of(trainer)
        policy = rollouts.branch_policy
        if isinstance(policy, PenalisedBranchPolicy):
            pl_module.log("rollout/branch_penalty", policy.penalty_per_step, sync_dist=True, rank_zero_only=True)
        concentration = rollouts.metrics.get("rollout/branch_concentration")
        if self._target is None or self.penalty is None or concentration is None or concentration == self._target:
            return
        step = self._range.step
        self.penalty = self._range.within(self.penalty + (step if concentration > self._target else -step))
        self._apply()

    def _apply(self) -> None:
        assert self._rollouts is not None, "`setup` has set it"
        assert self.penalty is not None, "`setup` has set it"
        policy = self._rollouts.branch_policy
        assert isinstance(policy, PenalisedBranchPolicy), "`setup` has checked it"
        self._rollouts.branch_policy = policy.with_penalty(self.penalty)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the rollouts."""
        self._rollouts = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the penalty of the next rollouts; None if it is constant."""
        return {"penalty": self.penalty}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a saved penalty. Sharded strategies restore after `on_fit_start`, so it is applied here."""
        if self._target is None or state_dict["penalty"] is None:
            return
        self.penalty = float(state_dict["penalty"])
        if self._rollouts is not None:
            self._apply()
