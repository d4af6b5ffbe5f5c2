"""The presets: functions that return an `Algorithm`. `conf/algorithm/*.yaml` describe the same values."""

from dataclasses import replace
from typing import Any

from aepo_lightning.advantages import (
    AnchorState,
    EntropyModulation,
    EntropyShaping,
    GroupZScore,
    LeaveOneOut,
    NoBaseline,
    NodeValue,
    OverlongPenalty,
    RootBaseline,
)
from aepo_lightning.branching import EntropyBalanced, OfficialEntropyBalanced, RandomBranching
from aepo_lightning.budgets import PreMonitoring, RootShare
from aepo_lightning.objectives import Cispo, ClippedSurrogate, KLPenalty, LossAggregation
from aepo_lightning.rollout.turn_entropy import TurnEntropy
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.dynamic_sampling import DynamicSampling


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
    """Return DAPO (arXiv:2503.14476): clip-higher, dynamic sampling, token mean, soft overlong punishment."""
    preset = Algorithm(
        name="dapo",
        objective=ClippedSurrogate(clip_range_high=0.28),
        dynamic_sampling=DynamicSampling(),
        overlong=OverlongPenalty(),
    )
    return replace(preset, **changes)


def GPPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return GPPO (arXiv:2508.07629): both clipped sides keep their gradient."""
    objective = ClippedSurrogate(clip_range_high=0.28, preserve_low=1.0, preserve_high=1.0)
    return replace(Algorithm(name="gppo", objective=objective), **changes)


def CEGPPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return CE-GPPO (arXiv:2509.20712): both clipped sides keep a weighted gradient; dual clip as in its code."""
    objective = ClippedSurrogate(clip_range_high=0.28, preserve_low=0.75, preserve_high=1.0, dual_clip=3.0)
    return replace(Algorithm(name="ce_gppo", objective=objective), **changes)


def GSPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return GSPO (arXiv:2507.18071): sequence-level importance ratio."""
    objective = ClippedSurrogate(ratio_level="sequence", clip_range_low=3.0e-4, clip_range_high=4.0e-4)
    aggregation = LossAggregation(mode="seq-mean-token-mean")
    return replace(Algorithm(name="gspo", objective=objective, aggregation=aggregation), **changes)


def AEPORandomBranching(**changes: Any) -> Algorithm:  # noqa: N802
    """Return a control, of no paper: `AEPO` with branches at a constant rate instead of where the entropy says."""
    return replace(AEPO(name="random_branching", branch_policy=RandomBranching(rate=0.5)), **changes)


def CISPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return CISPO (MiniMax-M1, arXiv:2506.13585): a clipped, detached importance weight in place of the clip."""
    return replace(Algorithm(name="cispo", objective=Cispo()), **changes)


def EMPG(**changes: Any) -> Algorithm:  # noqa: N802
    """Return EMPG (arXiv:2509.09265) on GRPO: certain turns count more, the opposite sign of AEPO's shaping."""
    return replace(Algorithm(name="empg", shaping=EntropyModulation()), **changes)


def AEPOReleased(**changes: Any) -> Algorithm:  # noqa: N802
    """Return the released AEPO run: half of the budget at the root, no entropy-aware advantage; not the released code.

    References:
        The 14B launch script of AEPO's repository, with what its rollouts do that the paper does not (`AEPOOfficial`).
    """
    preset = Algorithm(
        name="aepo_released",
        allocator=RootShare(share=0.5),
        branch_policy=OfficialEntropyBalanced(gamma=0.2, tau=0.5, penalty_per_step=0.05, branch_width=1),
        objective=ClippedSurrogate(preserve_high=1.0, dual_clip=3.0),
        turn_entropy=TurnEntropy(aggregate="sum", estimator="top_k"),
        top_up="sequential",
        branch_signal="before_tool",
        branch_baseline="own",
        on_malformed_call="stop",
    )
    return replace(preset, **changes)


def AEPOUnbiased(norm_length: int = 96, **changes: Any) -> Algorithm:  # noqa: N802
    """Return AEPO with branches that bias neither the value of a question nor the direction of its gradient.

    Args:
        norm_length: The constant that the token sum of a trajectory is divided by, such as the response budget.
        changes: Fields of `Algorithm` that differ.

    References:
        AEPO, arXiv:2510.14545, for pre-monitoring, penalised branches and EBPO. The rest is this library's:
        docs/unbiased_branching.md has the proof.
    """
    preset = Algorithm(
        name="aepo_unbiased",
        allocator=PreMonitoring(beta=10.0, min_global_budget=2),
        branch_policy=EntropyBalanced(gamma=4.0),
        objective=ClippedSurrogate(preserve_high=1.0),
        aggregation=LossAggregation(mode="seq-mean-token-sum-norm", norm_length=norm_length),
        advantage_estimator=NoBaseline(),
        leaf_weights="inverse_fan_out",
        credit=RootBaseline(),
        branch_signal="prefix",
        keep_probe=False,
    )
    return replace(preset, **changes)


def DrGRPO(norm_length: int = 96, **changes: Any) -> Algorithm:  # noqa: N802
    """Return Dr. GRPO (arXiv:2503.20783): no division by the deviation, nor by the length of a response.

    Args:
        norm_length: The constant that the token sum of a trajectory is divided by, such as the response budget.
        changes: Fields of `Algorithm` that differ.
    """
    aggregation = LossAggregation(mode="seq-mean-token-sum-norm", norm_length=norm_length)
    preset = Algorithm(name="dr_grpo", advantage_estimator=GroupZScore(normalize_by_std=False), aggregation=aggregation)
    return replace(preset, **changes)


def RLOO(norm_length: int = 96, **changes: Any) -> Algorithm:  # noqa: N802
    """Return RLOO (arXiv:2402.14740): each reward against the mean of the others, a response as one action.

    Args:
        norm_length: The constant that the token sum of a trajectory is divided by; it scales the loss only.
        changes: Fields of `Algorithm` that differ.
    """
    aggregation = LossAggregation(mode="seq-mean-token-sum-norm", norm_length=norm_length)
    return replace(Algorithm(name="rloo", advantage_estimator=LeaveOneOut(), aggregation=aggregation), **changes)


def ReinforcePP(**changes: Any) -> Algorithm:  # noqa: N802
    """Return REINFORCE++ (arXiv:2501.03262): no baseline, advantages whitened over the tokens of a step."""
    preset = Algorithm(
        name="reinforce_pp",
        advantage_estimator=NoBaseline(),
        normalize_over="step",
        kl_penalty=KLPenalty(place="reward", estimator="k1"),
    )
    return replace(preset, **changes)


def ReinforcePPBaseline(**changes: Any) -> Algorithm:  # noqa: N802
    """Return REINFORCE++ with baseline (arXiv:2501.03262): the group's mean is subtracted before whitening."""
    preset = Algorithm(
        name="reinforce_pp_baseline",
        advantage_estimator=GroupZScore(normalize_by_std=False),
        normalize_over="step",
        kl_penalty=KLPenalty(estimator="k2"),
    )
    return replace(preset, **changes)


def GiGPO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return GiGPO (arXiv:2505.10978): turns taken in the same state are compared, beside whole trajectories."""
    preset = Algorithm(name="gigpo", advantage_estimator=GroupZScore(normalize_by_std=False), credit=AnchorState())
    return replace(preset, **changes)


def AT2PO(**changes: Any) -> Algorithm:  # noqa: N802
    """Return AT2PO (arXiv:2601.04767): values of tree nodes as advantages of turns, importance ratios of turns."""
    preset = Algorithm(
        name="at2po",
        allocator=RootShare(share=0.4545),
        branch_policy=EntropyBalanced(gamma=4.0),
        objective=ClippedSurrogate(ratio_level="turn", clip_range_low=3.0e-3, clip_range_high=4.0e-3),
        aggregation=LossAggregation(mode="seq-mean-token-mean"),
        credit=NodeValue(average="entropy"),
    )
    return replace(preset, **changes)
