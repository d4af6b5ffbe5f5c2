"""The branching rule of the released AEPO code."""

from dataclasses import dataclass, replace

from aepo_lightning.branching.change import check_settings, entropy_change, penalty_factor
from aepo_lightning.contracts.branching import BranchContext


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialEntropyBalanced:
    """Branch if clip((u + gamma * dH) * max(0, 1 - penalty_per_step * l), 0, 1) >= tau for a uniform draw u.

    Written as a probability this is P = clip(1 - tau / (1 - penalty_per_step * l) + gamma * dH, 0, 1): the penalty
    is subtracted from the probability and does not scale the entropy term, unlike in the paper.

    Args:
        gamma: Weight of the entropy change, at least 0, per unit in which the entropies are measured.
        tau: Threshold on the score, in [0, 1].
        penalty_per_step: Share of the score that each consecutive branch takes away, at least 0.
        branch_width: Siblings that one decision opens, at least 1.

    References:
        AEPO, arXiv:2510.14545: released code, not the paper. Here l counts the branches of the chain, as in the
        paper; the code counts iterations in which the question got any new chain.
    """

    gamma: float = 0.2
    tau: float = 0.5
    penalty_per_step: float = 0.05
    branch_width: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        check_settings(
            gamma=self.gamma,
            tau=self.tau,
            penalty_per_step=self.penalty_per_step,
            branch_width=self.branch_width,
        )

    def score(self, context: BranchContext) -> float:
        """Return the clipped score that is compared with `tau`.

        Raises:
            ValueError: If an entropy is not finite.
        """
        factor = penalty_factor(self.penalty_per_step, context.consecutive_branches)
        raw = (context.uniform + self.gamma * entropy_change(context)) * factor
        return min(max(raw, 0.0), 1.0)

    def num_branches(self, context: BranchContext) -> int:
        """Return `branch_width` if the chain branches, else 0.

        Raises:
            ValueError: If an entropy is not finite.
        """
        return self.branch_width if self.score(context) >= self.tau else 0

    def with_penalty(self, penalty_per_step: float) -> "OfficialEntropyBalanced":
        """Return the same rule with another penalty.

        Raises:
            ConfigError: If the penalty is negative or not finite.
        """
        return replace(self, penalty_per_step=penalty_per_step)
