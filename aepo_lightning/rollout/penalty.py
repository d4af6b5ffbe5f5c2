"""Whether it was the penalty for consecutive branches that kept a chain from branching."""

from aepo_lightning.contracts.branching import BranchContext, BranchPolicy, PenalisedBranchPolicy


def is_penalised(policy: BranchPolicy, context: BranchContext) -> bool:
    """Return whether a policy that does not branch here would have done so without its penalty."""
    if not context.consecutive_branches:  # looked at first: to ask for a Protocol takes longer
        return False
    if not isinstance(policy, PenalisedBranchPolicy) or not policy.penalty_per_step:
        return False
    return policy.with_penalty(0.0).num_branches(context) > 0
