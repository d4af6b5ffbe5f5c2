"""The entropy-balanced branching rule of the AEPO paper; ARPO's with the penalty at 0."""

from dataclasses import dataclass, replace
from typing import Literal

from aepo_lightning.branching.change import check_settings, entropy_change, penalty_factor
from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyBalanced:
    """Branch with score P = (alpha + gamma * dH) * (1 - min(1, penalty_per_step * l)).

    dH is the entropy after the tool result minus the entropy at the start of the chain, and l counts the branch
    decisions in a row on this chain that opened a branch.

    Args:
        alpha: Base probability of a branch, in [0, 1].
        gamma: Weight of the entropy change, at least 0, per unit in which the entropies are measured.
        tau: Threshold on P, in [0, 1]. Only `threshold` looks at it.
        penalty_per_step: Share of P that each consecutive branch takes away, at least 0. With 0.05 no chain branches
            after 20 branches in a row; 0 is ARPO.
        decision: `bernoulli` branches with probability clip(P, 0, 1). `threshold` branches if P > tau; with
            alpha = tau and l = 0 it is the test dH > 0.
        branch_width: Z, siblings that one decision opens, at least 1.

    References:
        AEPO, arXiv:2510.14545, entropy-balanced adaptive rollout (P, penalty, threshold). ARPO, arXiv:2507.19849,
        section 3.1, for alpha = tau = 0.5 and gamma = 0.2. The paper's decision is the threshold; the default here is
        the Bernoulli draw, under which the size of dH counts and not its sign alone.
    """

    alpha: float = 0.5
    gamma: float = 0.2
    tau: float = 0.5
    penalty_per_step: float = 0.05
    decision: Literal["bernoulli", "threshold"] = "bernoulli"
    branch_width: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"`alpha` must be in [0, 1], but got {self.alpha}. It is a probability.")
        if self.decision not in ("bernoulli", "threshold"):
            raise ConfigError(f"`decision` must be 'bernoulli' or 'threshold', but got {self.decision!r}.")
        check_settings(
            gamma=self.gamma,
            tau=self.tau,
            penalty_per_step=self.penalty_per_step,
            branch_width=self.branch_width,
        )

    def score(self, context: BranchContext) -> float:
        """Return P, not clipped: below 0 or above 1 for a large entropy change.

        Raises:
            ValueError: If an entropy is not finite.
        """
        factor = penalty_factor(self.penalty_per_step, context.consecutive_branches)
        return (self.alpha + self.gamma * entropy_change(context)) * factor

    def num_branches(self, context: BranchContext) -> int:
        """Return `branch_width` if the chain branches, else 0.

        Raises:
            ValueError: If an entropy is not finite.
        """
        score = self.score(context)
        # `uniform` is in [0, 1), so the comparison with the unclipped score is the draw with clip(P, 0, 1).
        is_branching = context.uniform < score if self.decision == "bernoulli" else score > self.tau
        return self.branch_width if is_branching else 0

    def with_penalty(self, penalty_per_step: float) -> "EntropyBalanced":
        """Return the same rule with another penalty.

        Raises:
            ConfigError: If the penalty is negative or not finite.
        """
        return replace(self, penalty_per_step=penalty_per_step)
