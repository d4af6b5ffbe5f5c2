"""An algorithm as one value: what its rollouts, its advantages and its loss are made of, and the presets.

Module and datamodule take the same `Algorithm`, so what both depend on is written once. A preset is a function that
returns one; `conf/algorithm/*.yaml` describe the same values.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aepo_lightning.advantages import EntropyShaping, GroupZScore
from aepo_lightning.branching import EntropyBalanced, NeverBranch, OfficialEntropyBalanced
from aepo_lightning.budgets import PreMonitoring, RootShare
from aepo_lightning.contracts.branching import BranchPolicy, BudgetAllocator
from aepo_lightning.contracts.objective import AdvantageEstimator, Objective
from aepo_lightning.objectives import ClippedSurrogate, KLPenalty, LossAggregation
from aepo_lightning.rollout.settings import RolloutSettings, SamplingSettings
from aepo_lightning.rollout.turn_entropy import TurnEntropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """A combination of parts under a name. The defaults are GRPO's.

    Swap a part with `dataclasses.replace`, or give it to a preset: `AEPO(objective=...)`.

    Raises:
        ConfigError: If a part or switch has no meaning.
    """

    name: str
    budget: int = 8
    """k: trajectories per question, always exactly this many."""
    allocator: BudgetAllocator = field(default_factory=RootShare)
    """Splits the budget between fresh trajectories and branches."""
    branch_policy: BranchPolicy = field(default_factory=NeverBranch)
    """Decides after each tool result whether a trajectory branches."""
    objective: Objective = field(default_factory=ClippedSurrogate)
    aggregation: LossAggregation = field(default_factory=LossAggregation)
    kl_penalty: KLPenalty = field(default_factory=KLPenalty)
    advantage_estimator: AdvantageEstimator = field(default_factory=GroupZScore)
    shaping: EntropyShaping | None = None
    """Entropy-aware advantage; None leaves one advantage per trajectory."""
    drop_zero_variance_groups: bool = False
    """Leave out questions whose trajectories all have the same reward."""
    turn_entropy: TurnEntropy = field(default_factory=TurnEntropy)
    """How the entropies of a turn's first tokens become the one number that decides."""
    top_up: Literal["parallel", "sequential"] = "parallel"
    keep_probe: bool = True
    branch_signal: Literal["after_tool", "before_tool"] = "after_tool"
    penalty_scope: Literal["chain", "question"] = "chain"
    branch_baseline: Literal["root", "own"] = "root"

    def __post_init__(self) -> None:
        """Refuse switches without meaning."""
        self.rollout_settings(SamplingSettings())

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
        )


def AEPO(**changes: Any) -> Algorithm:  # noqa: N802 -- named as the algorithm
    """Return AEPO as published: pre-monitoring, penalised branching, EBPO, entropy-aware advantage.

    Args:
        changes: Fields of `Algorithm` that differ, such as `budget=16`.

    References:
        AEPO, arXiv:2510.14545. Entropies are means over 20 tokens here and sums in the released code, so `beta` and
        `gamma` are 20 times the released constants.
    """
    preset = Algorithm(
        name="aepo",
        allocator=PreMonitoring(beta=10.0),
        branch_policy=EntropyBalanced(gamma=4.0),
        objective=ClippedSurrogate(preserve_high=1.0),
        shaping=EntropyShaping(weight=0.2, scope="group", guard=True),
    )
    return replace(preset, **changes)


def AEPOOfficial(**changes: Any) -> Algorithm:  # noqa: N802
    """Return the released AEPO code with its bugs fixed; every argument here is one deviation from `AEPO`."""
    preset = Algorithm(
        name="aepo_official",
        allocator=PreMonitoring(beta=0.5, rounding="floor_plus_one", includes_root_turn=True),
        branch_policy=OfficialEntropyBalanced(gamma=0.2, tau=0.5, penalty_per_step=0.05, branch_width=1),
        objective=ClippedSurrogate(preserve_high=1.0, dual_clip=3.0),
        shaping=EntropyShaping(weight=0.2, scope="minibatch", guard=False),
        turn_entropy=TurnEntropy(aggregate="sum", estimator="top_k"),
        top_up="sequential",
        keep_probe=False,
        branch_signal="before_tool",
        penalty_scope="question",
        branch_baseline="own",
    )
    return replace(preset, **changes)


def ARPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return ARPO (arXiv:2507.19849): half of the budget at the root, entropy branches without penalty, GRPO's loss."""
    preset = Algorithm(
        name="arpo",
        allocator=RootShare(share=0.5),
        branch_policy=EntropyBalanced(gamma=4.0, penalty_per_step=0.0),
    )
    return replace(preset, **changes)


def GRPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return GRPO: independent samples, symmetric clipping."""
    return replace(Algorithm(name="grpo"), **changes)


def DAPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return DAPO (arXiv:2503.14476): clip-higher, groups without information left out (not sampled again)."""
    preset = Algorithm(name="dapo", objective=ClippedSurrogate(clip_range_high=0.28), drop_zero_variance_groups=True)
    return replace(preset, **changes)


def GPPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return GPPO (arXiv:2508.07629): both clipped sides keep their gradient."""
    objective = ClippedSurrogate(clip_range_high=0.28, preserve_low=1.0, preserve_high=1.0)
    return replace(Algorithm(name="gppo", objective=objective), **changes)


def CEGPPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return CE-GPPO (arXiv:2509.20712): both clipped sides keep a weighted gradient."""
    objective = ClippedSurrogate(clip_range_high=0.28, preserve_low=0.75, preserve_high=1.0)
    return replace(Algorithm(name="ce_gppo", objective=objective), **changes)


def GSPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return GSPO (arXiv:2507.18071): sequence-level importance ratio."""
    objective = ClippedSurrogate(ratio_level="sequence", clip_range_low=3.0e-4, clip_range_high=4.0e-4)
    aggregation = LossAggregation(mode="seq-mean-token-mean")
    return replace(Algorithm(name="gspo", objective=objective, aggregation=aggregation), **changes)
