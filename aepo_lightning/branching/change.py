"""What the branching rules share: the entropy change, the penalty factor and the checks of common settings."""

import math

from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.errors import ConfigError


def entropy_change(context: BranchContext) -> float:
    """Return dH, the entropy now minus the entropy at the start of the chain, in the unit of both.

    Raises:
        ValueError: If one of the entropies is not finite.
    """
    change = context.entropy - context.initial_entropy
    if not math.isfinite(change):
        raise ValueError(
            f"`entropy` and `initial_entropy` must be finite, but got {context.entropy} and "
            f"{context.initial_entropy}. Check the log-probs that the engine returned."
        )
    return change


def penalty_factor(penalty_per_step: float, consecutive_branches: int) -> float:
    """Return 1 - min(1, penalty_per_step * l) for l branches in a row: 1 without any, falling to 0."""
    return 1.0 - min(1.0, penalty_per_step * consecutive_branches)


def check_settings(*, gamma: float, tau: float, penalty_per_step: float, branch_width: int) -> None:
    """Check the settings that the entropy-driven rules share.

    Raises:
        ConfigError: If one of them has no meaning.
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ConfigError(f"`gamma` must be finite and at least 0, but got {gamma}. 0 ignores the entropy.")
    if not 0 <= tau <= 1:
        raise ConfigError(f"`tau` must be in [0, 1], but got {tau}. It is compared with a probability.")
    if not (math.isfinite(penalty_per_step) and penalty_per_step >= 0):
        raise ConfigError(
            f"`penalty_per_step` must be finite and at least 0, but got {penalty_per_step}. 0 is no penalty."
        )
    if branch_width < 1:
        raise ConfigError(f"`branch_width` must be at least 1, but got {branch_width}. Use NeverBranch to go without.")
