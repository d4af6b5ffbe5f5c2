"""Branches at a constant rate, wherever: the control that shows what the entropy in a rule is worth."""

from dataclasses import dataclass

from aepo_lightning.contracts.branching import BranchContext
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomBranching:
    """Branch with probability `rate` after every tool result, whatever the entropies and the branches before.

    Args:
        rate: Probability of a branch, in [0, 1]. The default is that of `EntropyBalanced` where the entropy has not
            changed and no branch went before. To match the rate of another rule, run that rule and give what it logs
            as `rollout/branch_rate`.
        branch_width: Siblings that one decision opens, at least 1.
    """

    rate: float = 0.5
    branch_width: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"`rate` must be in [0, 1], but got {self.rate}. It is a probability.")
        if self.branch_width < 1:
            raise ConfigError(
                f"`branch_width` must be at least 1, but got {self.branch_width}. Use NeverBranch to go without."
            )

    def num_branches(self, context: BranchContext) -> int:
        """Return `branch_width` if the draw of this decision says so, else 0."""
        return self.branch_width if context.uniform < self.rate else 0
