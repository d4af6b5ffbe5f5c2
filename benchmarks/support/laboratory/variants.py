"""What is compared: every preset of `conf/algorithm`, and AEPO with one part changed at a time."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module

from aepo_lightning.advantages import (
    AnchorState,
    ClipCov,
    EntropyModulation,
    FirstBranch,
    GroupZScore,
    KLCov,
    LeaveOneOut,
    NoBaseline,
    NodeValue,
    RootBaseline,
    TopEntropyMask,
    TurnReturn,
)
from aepo_lightning.app.build import build
from aepo_lightning.branching import EntropyBalanced, NeverBranch
from aepo_lightning.budgets import RootShare
from aepo_lightning.objectives import LossAggregation
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.presets import AEPO

CENTRED = GroupZScore(normalize_by_std=False)
TOKEN_SUM = LossAggregation(mode="seq-mean-token-sum-norm", norm_length=1)
"""Every token counts the same, whatever the lengths of the others: the policy gradient itself."""


def preset_names() -> list[str]:
    """Return the names of the presets."""
    found = (each.name for each in files("aepo_lightning.conf").joinpath("algorithm").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml") and not name.startswith("_"))


def preset(name: str) -> Algorithm:
    """Return a preset as its file describes it."""
    with initialize_config_module("aepo_lightning.conf", version_base="1.3"):
        found: Algorithm = build(compose("train", overrides=[f"algorithm={name}"]).algorithm)
    return found


def unbiased_parts(**changes: Any) -> Algorithm:
    """Return independent samples, rewards less their mean, token sums: right up to (k - 1) / k, unless changed."""
    parts = Algorithm(name="parts", advantage_estimator=CENTRED, aggregation=TOKEN_SUM)
    return replace(parts, **changes)


def one_off() -> Mapping[str, Algorithm]:
    """Return AEPO, and AEPO with one part taken out of it."""
    return {
        "AEPO": AEPO(),
        "no deviation in the advantage": AEPO(advantage_estimator=CENTRED),
        "no entropy shaping": AEPO(shaping=None),
        "token sums, not token means": AEPO(aggregation=TOKEN_SUM),
        "no branches": AEPO(allocator=RootShare(), branch_policy=NeverBranch()),
        "m = k / 2, no pre-monitoring": AEPO(allocator=RootShare(share=0.5)),
        "no penalty": AEPO(branch_policy=EntropyBalanced(gamma=4.0, penalty_per_step=0.0)),
        "branches wherever (gamma = 0)": AEPO(branch_policy=EntropyBalanced(gamma=0.0)),
    }


def one_on() -> Mapping[str, Algorithm]:
    """Return the parts that are right, and the same with one part of AEPO put in."""
    aepo, half = AEPO(), RootShare(share=0.5)
    branching = {"branch_policy": aepo.branch_policy}
    return {
        "nothing": unbiased_parts(),
        "deviation in the advantage": unbiased_parts(advantage_estimator=GroupZScore()),
        "token means": unbiased_parts(aggregation=LossAggregation()),
        "entropy shaping": unbiased_parts(shaping=aepo.shaping),
        "branches, m = k / 2": unbiased_parts(allocator=half, **branching),
        "branches wherever (gamma = 0), m = k / 2": unbiased_parts(
            allocator=half, branch_policy=EntropyBalanced(gamma=0.0)
        ),
        "branches with pre-monitoring": unbiased_parts(allocator=aepo.allocator, **branching),
        "pre-monitoring, no branches": unbiased_parts(allocator=aepo.allocator),
    }


def components() -> Mapping[str, Algorithm]:
    """Return the right parts with one of the components that no preset but AEPO and EMPG sets."""
    return {
        "the most uncertain fifth of the tokens (TopEntropyMask)": unbiased_parts(token_mask=TopEntropyMask()),
        "a tenth of the tokens left out (ClipCov)": unbiased_parts(
            token_mask=ClipCov(fraction=0.1, lowest=0.1, highest=5.0)
        ),
        "a tenth of the tokens held back (KLCov)": unbiased_parts(kl_cov=KLCov(fraction=0.1)),
        "modulation by entropy (EntropyModulation)": unbiased_parts(shaping=EntropyModulation()),
    }


def branching() -> Mapping[str, Algorithm]:
    """Return the right parts with branches: by when they are decided on and how leaves count, half and all of it."""
    aepo, half = AEPO(), RootShare(share=0.5)
    found = {}
    for signal in ("after_tool", "prefix"):
        for weights in ("uniform", "inverse_fan_out"):
            found[f"{signal}, {weights}"] = unbiased_parts(
                allocator=half, branch_policy=aepo.branch_policy, branch_signal=signal, leaf_weights=weights
            )
    both = found["prefix, inverse_fan_out"]
    apart = replace(both, advantage_estimator=LeaveOneOut(unit="root"))
    found["prefix, inverse_fan_out, other root chains as baseline"] = apart
    found["the same with pre-monitoring"] = replace(apart, allocator=aepo.allocator)
    found["the same with pre-monitoring, probe discarded"] = replace(apart, allocator=aepo.allocator, keep_probe=False)
    return found


def credits() -> Mapping[str, Algorithm]:
    """Return unbiased branches with the credit of each turn given in another way, and independent samples likewise."""
    tree = branching()["prefix, inverse_fan_out, other root chains as baseline"]
    raw = {"advantage_estimator": NoBaseline()}
    return {
        "copies": tree,
        "root chains but top-ups as baseline (RootBaseline)": replace(tree, credit=RootBaseline(), **raw),
        "mean of the leaves (NodeValue)": replace(tree, credit=NodeValue()),
        "mean of the children": replace(tree, credit=NodeValue(average="children")),
        "mean of the children, less the parent's": replace(
            tree, credit=NodeValue(average="children", baseline="parent")
        ),
        "children by entropy": replace(tree, credit=NodeValue(average="entropy")),
        "the first branch (FirstBranch)": replace(tree, credit=FirstBranch()),
        "return-to-go, discount 1 (TurnReturn)": replace(tree, credit=TurnReturn(discount=1.0), **raw),
        "return-to-go, discount 0.95": replace(tree, credit=TurnReturn(), **raw),
        "independent, copies": unbiased_parts(),
        "independent, leave one out": unbiased_parts(advantage_estimator=LeaveOneOut()),
        "independent, anchor states, discount 1": unbiased_parts(credit=AnchorState(discount=1.0)),
        "independent, anchor states, deviation": unbiased_parts(credit=AnchorState(normalize_by_std=True)),
    }
