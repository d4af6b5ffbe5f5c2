"""What `EntropyGuard` does about alarms, and what has to be there for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L

from aepo_lightning.callbacks.branch_penalty import BranchPenalty
from aepo_lightning.callbacks.entropy_target import EntropyTarget
from aepo_lightning.callbacks.guard_acts import (
    ACTS,
    RAISE_PENALTY,
    ROLL_BACK,
    STEER_ENTROPY,
    read_schedule,
    saver_of,
)
from aepo_lightning.callbacks.stability import COLLAPSE, ERUPTION, KINDS, NO_SIGNAL, UNSTABLE, UPDATE
from aepo_lightning.callbacks.trainer_parts import branching_rollouts_of, republishing_rollouts_of
from aepo_lightning.contracts.branching import PenalisedBranchPolicy
from aepo_lightning.contracts.policy import EntropyRegularised
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Acts and their sizes."""

    acts: Sequence[str | Sequence[str]] = ()
    """What is done, alarm by alarm: `lower_rate`, `raise_penalty`, `steer_entropy`, `roll_back`, `stop`, or several of
    them at once as a list. Each entry is used once. Empty: warn only."""
    act_on: Sequence[str] = (COLLAPSE, ERUPTION, UNSTABLE, UPDATE, NO_SIGNAL)
    """Kinds of alarms that are acted upon; others are only told."""
    cooldown: int = 3
    """Iterations after an act in which nothing more is done."""
    rate_factor: float = 0.5
    """`lower_rate` multiplies the learning rate by this, in (0, 1)."""
    penalty_step: float = 0.1
    """`raise_penalty` adds this to the branch penalty."""
    target_nats: float | Sequence[Sequence[float | int]] | None = None
    """What `steer_entropy` aims at: nats, or pairs of an iteration and nats. None: what the run began with."""
    coefficient_step: float = 0.005
    """Change of the weight of the entropy bonus per iteration and nat of distance from the target."""
    coefficient_range: Sequence[float] = (0.0, 0.01)
    """Smallest and largest weight that `steer_entropy` sets. A smallest below 0 presses high entropy down."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: If one has no meaning.
        """
        for name, known, found in (("acts", ACTS, self.names), ("act_on", KINDS, self.act_on)):
            if unknown := sorted(set(found) - set(known)):
                raise ConfigError(f"`{name}` must hold {', '.join(known)} only, but got {', '.join(unknown)}. Drop it.")
        if any(not rung for rung in self.rungs):
            raise ConfigError("An entry of `acts` must name an act, but one is empty. Drop it.")
        if self.cooldown < 0:
            raise ConfigError(f"`cooldown` must be at least 0, but got {self.cooldown}. It counts iterations.")
        if not 0 < self.rate_factor < 1:
            raise ConfigError(f"`rate_factor` must be in (0, 1), but got {self.rate_factor}. It lowers the rate.")
        for name in ("penalty_step", "coefficient_step"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"`{name}` must be positive and finite, but got {value}. Drop the act instead.")
        if len(self.coefficient_range) != len(("low", "high")) or not (
            -math.inf < self.coefficient_range[0] <= self.coefficient_range[1] < math.inf
        ):
            raise ConfigError(f"`coefficient_range` must be two rising numbers, but got {self.coefficient_range}.")
        read_schedule(self.target_nats)

    @property
    def rungs(self) -> list[tuple[str, ...]]:
        """The acts of each entry."""
        return [(each,) if isinstance(each, str) else tuple(each) for each in self.acts]

    @property
    def names(self) -> frozenset[str]:
        """All acts."""
        return frozenset(name for rung in self.rungs for name in rung)


def check_surroundings(names: frozenset[str], trainer: L.Trainer, module: L.LightningModule) -> None:
    """Check that acts have what they act upon, and that nothing else moves it.

    Raises:
        ConfigError: If not.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if RAISE_PENALTY in names:
        policy: object = branching_rollouts_of(trainer).branch_policy
        if not isinstance(policy, PenalisedBranchPolicy):
            raise ConfigError(
                f"`branch_policy` must have a penalty for the act 'raise_penalty', but got {type(policy).__name__}. "
                "Use EntropyBalanced, or drop the act."
            )
        if any(isinstance(each, BranchPenalty) and each.is_steering for each in callbacks):
            raise ConfigError("`raise_penalty` must not stand beside a BranchPenalty with a target. Drop one of them.")
    if STEER_ENTROPY in names:
        if not isinstance(module, EntropyRegularised):
            raise ConfigError(
                f"The module must have an `entropy_coefficient` for the act 'steer_entropy', but "
                f"{type(module).__name__} has none. Drop the act."
            )
        if any(isinstance(each, EntropyTarget) and each.is_steering for each in callbacks):
            raise ConfigError("`steer_entropy` must not stand beside an EntropyTarget with a target. Drop one of them.")
    if ROLL_BACK in names:
        saver_of(trainer)
        republishing_rollouts_of(trainer)
