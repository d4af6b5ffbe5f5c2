"""Whether it was the penalty for consecutive branches that kept a chain from branching."""

from typing import Protocol, runtime_checkable

from aepo_lightning.contracts.engine import BranchContext, BranchPolicy


@runtime_checkable
class PenalisedBranchPolicy(Protocol):
    """A branch policy whose penalty can be read and replaced."""

    @property
    def penalty_per_step(self) -> float:
        """Share of the branch score that each consecutive branch takes away."""
        ...

    def num_branches(self, context: BranchContext) -> int:
        """Return how many branches to open."""
        ...

    def with_penalty(self, penalty_per_step: float) -> BranchPolicy:
        """Return the same policy with another penalty."""
        ...


def is_penalised(policy: BranchPolicy, context: BranchContext) -> bool:
    """Return whether a policy that does not branch here would have done so without its penalty."""
    if not isinstance(policy, PenalisedBranchPolicy) or not policy.penalty_per_step or not context.consecutive_branches:
        return False
    return policy.with_penalty(0.0).num_branches(context) > 0
