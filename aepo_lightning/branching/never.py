"""No branches: every trajectory is an independent chain."""

from dataclasses import dataclass

from aepo_lightning.contracts.branching import BranchContext


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverBranch:
    """Let every chain go on alone, as GRPO, DAPO and all trajectory-level algorithms do."""

    def num_branches(self, context: BranchContext) -> int:  # noqa: ARG002
        """Return 0."""
        return 0
