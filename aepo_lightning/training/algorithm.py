"""An algorithm as one value: what its rollouts, its advantages and its loss are made of.

Module and datamodule take the same `Algorithm`, so what both depend on is written once.
"""

from dataclasses import dataclass, field
from typing import Literal

from aepo_lightning.advantages import GroupZScore, KLCov, OverlongPenalty
from aepo_lightning.branching import NeverBranch
from aepo_lightning.budgets import RootShare
from aepo_lightning.contracts.branching import BranchPolicy, BudgetAllocator
from aepo_lightning.contracts.objective import AdvantageEstimator, Credit, Objective
from aepo_lightning.contracts.shaping import AdvantageShaping
from aepo_lightning.contracts.tree import LeafWeighting
from aepo_lightning.objectives import ClippedSurrogate, KLPenalty, LossAggregation
from aepo_lightning.rollout.settings import RolloutSettings, SamplingSettings
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from aepo_lightning.training.advantage_checks import check_advantages
from aepo_lightning.training.dynamic_sampling import DynamicSampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """A combination of parts under a name. The defaults are GRPO's.

    Swap a part with `dataclasses.replace`, or give it to a preset: `AEPO(objective=...)`.

    Raises:
        ConfigError: If a part or switch has no meaning.
    """

    name: str
    """In logs, checkpoints and tables."""
    budget: int = 8
    """k: trajectories per question, always exactly this many."""
    allocator: BudgetAllocator = field(default_factory=RootShare)
    """Splits the budget between fresh trajectories and branches."""
    branch_policy: BranchPolicy = field(default_factory=NeverBranch)
    """Decides after each tool result whether a trajectory branches."""
    objective: Objective = field(default_factory=ClippedSurrogate)
    """The loss of each token."""
    aggregation: LossAggregation = field(default_factory=LossAggregation)
    """How token losses become the loss of a step."""
    kl_penalty: KLPenalty = field(default_factory=KLPenalty)
    """On the distance from a frozen reference policy; off by default."""
    advantage_estimator: AdvantageEstimator = field(default_factory=GroupZScore)
    """Advantages of the trajectories of a question, from their rewards."""
    shaping: AdvantageShaping | None = None
    """Advantages of single tokens, such as the entropy-aware one; None leaves one advantage per trajectory."""
    token_mask: AdvantageShaping | None = None
    """Which tokens keep their advantage, after shaping: `TopEntropyMask`, `ClipCov`. None keeps all."""
    kl_cov: KLCov | None = None
    """Penalty on leaving the old policy, for the tokens that would lower the entropy most."""
    drop_zero_variance_groups: bool = False
    """Leave out questions whose trajectories all have the same reward, and ask no others in their place: the cheap
    variant of `dynamic_sampling`."""
    turn_entropy: TurnEntropy = field(default_factory=TurnEntropy)
    """How the entropies of a turn's first tokens become the one number that decides."""
    top_up: Literal["parallel", "sequential"] = "parallel"
    """Unused branch budget becomes fresh chains all at once, or (released code) one after another."""
    keep_probe: bool = True
    """The pre-monitoring trajectory is one of the m global samples, or (released code) thrown away."""
    branch_signal: Literal["after_tool", "before_tool", "prefix"] = "after_tool"
    """Whose entropy decides: that of the turn after the result, (released code) of the turn before it, or of the
    distribution right after it, before a token is drawn."""
    penalty_scope: Literal["chain", "question"] = "chain"
    """Branches in a row are counted per chain, or (released code) per question."""
    branch_baseline: Literal["root", "own"] = "root"
    """A branch compares with the first turn of its trajectory, or (released code) with its own first turn."""
    on_malformed_call: Literal["tell", "stop"] = "tell"
    """A call that cannot be read is answered with what is wrong, or (released code) ends the trajectory."""
    leaf_weights: LeafWeighting = "uniform"
    """How much each trajectory counts in baseline, deviation and loss: all alike, or those of a root chain together as
    much as one chain without branches (`inverse_fan_out`)."""
    credit: Credit | None = None
    """Gives each turn its own advantage. None: every turn has that of its trajectory, so that a shared turn is trained
    with the advantage of each trajectory that has it."""
    normalize_over: Literal["group", "step"] = "group"
    """`step`: what the estimator gives is whitened over the tokens of the optimiser step, on all ranks."""
    dynamic_sampling: DynamicSampling | None = None
    """Replace groups without information by fresh questions; None trains on what was asked first."""
    overlong: OverlongPenalty | None = None
    """What advantages see of long trajectories; None is the reward as it was given."""

    def __post_init__(self) -> None:
        """Refuse switches without meaning."""
        self.rollout_settings(SamplingSettings())
        check_advantages(self.advantage_estimator, self.leaf_weights, self.credit, self.normalize_over, self.overlong)

    def rollout_settings(self, sampling: SamplingSettings) -> RolloutSettings:
        """Return the settings of training rollouts: the algorithm's, and those that are the user's.

        Args:
            sampling: Temperature and limits, which no algorithm has an opinion about.
        """
        return RolloutSettings.of(
            sampling,
            budget=self.budget,
            turn_entropy=self.turn_entropy,
            top_up=self.top_up,
            keep_probe=self.keep_probe,
            branch_signal=self.branch_signal,
            penalty_scope=self.penalty_scope,
            branch_baseline=self.branch_baseline,
            on_malformed_call=self.on_malformed_call,
        )
