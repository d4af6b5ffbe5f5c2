"""What would reproduce or refute each claim of AEPO's paper: the analysis plan of docs/faithfulness.md, as data.

A claim is tested by one or more comparisons. Each asks for an outcome of two algorithms (or of a factor of AEPO's
factorial, on against off) on some beds, paired by bed and seed. All comparisons together are one family for Holm's
correction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.support.comparison import curves
from benchmarks.support.comparison.runs import Record
from benchmarks.support.comparison.settings import Bed

Kind = Literal["mean", "interquartile mean"]

PASS, PASS_K = "val/pass@1", "val/pass@4"
ENTROPY = "train/entropy"
WITHOUT, NOTHING = "without", "nothing"
ALL_BEDS = ("stability", "sparse", "burst")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A number of a run."""

    title: str
    read: Callable[[Record, Bed], float]
    smallest: float
    """Effect that would be worth having."""
    is_relative: bool = False
    """Whether effects are differences of logarithms, hence of ratios."""


def _held_out(name: str, unit: curves.Unit, read: Callable[[curves.Numbers, curves.Numbers, float], float]):  # noqa: ANN202
    def take(record: Record, bed: Bed) -> float:
        return read(*curves.held_out_curve(record, name, unit), budget_of(bed, unit))

    return take


def _of_iterations(name: str, read: Callable[[curves.Numbers, curves.Numbers, float], float]):  # noqa: ANN202
    def take(record: Record, bed: Bed) -> float:
        return read(*curves.iteration_curve(record, name, "tokens"), budget_of(bed, "tokens"))

    return take


def budget_of(bed: Bed, unit: curves.Unit) -> float:
    """Return what a run on a bed may spend."""
    return float(bed.num_generated_tokens if unit == "tokens" else bed.num_answered_calls)


def _concentration_over_chance(record: Record, bed: Bed) -> float:
    ends, found = curves.iteration_curve(record, "rollout/branch_concentration", "tokens")
    by_chance = curves.iteration_curve(record, "rollout/expected_branch_concentration", "tokens")[1]
    return curves.step_mean_up_to(ends, found - by_chance, budget_of(bed, "tokens"))


def _entropy_beyond_the_bound(record: Record, bed: Bed) -> float:
    """Return the mean entropy of the tokens beyond the bound over that of all.

    Both means weigh an iteration by the share of its tokens that is beyond the bound.
    """
    beyond, everywhere, share = (
        curves.iteration_curve(record, f"train/{name}", "tokens")[1]
        for name in ("entropy_beyond_high", "old_entropy", "clip_fraction_high")
    )
    starts = np.cumsum(curves.costs(record, "tokens")) - curves.costs(record, "tokens")
    known = np.isfinite(beyond * everywhere * share) & (starts < budget_of(bed, "tokens"))
    total = float((share * everywhere)[known].sum())
    return float((share * beyond)[known].sum()) / total if total else float("nan")


def _calls_per_iteration(record: Record, bed: Bed) -> float:
    del bed
    return float(curves.costs(record, "calls").mean())


OUTCOMES: Mapping[str, Outcome] = {
    "area": Outcome(
        title="mean pass@1 up to the token budget", read=_held_out(PASS, "tokens", curves.mean_up_to), smallest=0.02
    ),
    "area over calls": Outcome(
        title="mean pass@1 up to the budget of tool calls",
        read=_held_out(PASS, "calls", curves.mean_up_to),
        smallest=0.02,
    ),
    "final": Outcome(
        title="pass@1 at the token budget", read=_held_out(PASS, "tokens", curves.value_at), smallest=0.03
    ),
    "final pass@4": Outcome(
        title="pass@4 at the token budget", read=_held_out(PASS_K, "tokens", curves.value_at), smallest=0.03
    ),
    "drop": Outcome(
        title="best pass@1 less that at the token budget",
        read=_held_out(PASS, "tokens", curves.drop_up_to),
        smallest=0.05,
    ),
    "entropy": Outcome(
        title="mean policy entropy (nats)", read=_of_iterations(ENTROPY, curves.step_mean_up_to), smallest=0.02
    ),
    "restlessness": Outcome(
        title="mean change of the policy entropy from one iteration to the next, over its mean",
        read=_of_iterations(ENTROPY, curves.restlessness_up_to),
        smallest=0.02,
    ),
    "distinct": Outcome(
        title="trajectories of a group that differ in a tool call or the answer",
        read=_of_iterations("rollout/num_distinct_actions", curves.step_mean_up_to),
        smallest=0.05,
        is_relative=True,
    ),
    "concentration": Outcome(
        title="share of branches on the three root chains with the most, less what chance would give",
        read=_concentration_over_chance,
        smallest=0.02,
    ),
    "entropy beyond the bound": Outcome(
        title="entropy of the tokens beyond the upper bound over that of all",
        read=_entropy_beyond_the_bound,
        smallest=0.1,
        is_relative=True,
    ),
    "calls": Outcome(title="tool calls of an iteration", read=_calls_per_iteration, smallest=0.1, is_relative=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sides, and in which direction the claim expects the first to differ."""

    claim: str
    outcome: str
    treated: str
    """An algorithm, or the letter of a factor: AEPO's cells with it."""
    control: str
    """An algorithm; `without` beside the letter of a factor; or `nothing`, where the outcome itself is a difference."""
    beds: tuple[str, ...] = ALL_BEDS
    direction: Literal[1, -1] = 1
    """1 if the claim expects more of the outcome, -1 if less."""
    statistic: Kind = "interquartile mean"

    @property
    def name(self) -> str:
        """What is compared, in words."""
        sides = f"{self.treated} against {self.control}"
        if self.is_factor:
            sides = f"{self.treated} on against off"
        elif self.control == NOTHING:
            sides = self.treated
        return f"{self.claim} {sides}: {self.outcome}"

    @property
    def is_factor(self) -> bool:
        """Whether a factor of the factorial is compared."""
        return self.control == WITHOUT


CLAIMS: Mapping[str, str] = {
    "C1": "AEPO consistently outperforms seven mainstream RL algorithms",
    "C2": "AEPO improves rollout sampling diversity",
    "C3": "AEPO maintains stable policy entropy",
    "C4": "relying on entropy signals alone leads to training collapse, which AEPO prevents",
    "C5": "entropy pre-monitoring allocates the sampling budget well",
    "C6": "the branch penalty prevents over-branching",
    "C7": "the stop-gradient in the clipping term helps learning",
    "C8": "the entropy-aware advantage helps learning",
    "C9": "entropy after tool results tells where to branch",
    "C10": "AEPO needs about half the tool calls of other RL algorithms",
    "C11": "AEPO raises pass@k",
    "C12": "tokens beyond the upper clip bound are high-entropy tokens",
}
SEVEN = ("grpo", "reinforce_pp", "dapo", "gppo", "cispo", "gigpo", "arpo")
COMPARISONS: tuple[Comparison, ...] = (
    *(Comparison(claim="C1", outcome="area", treated="aepo", control=other) for other in SEVEN),
    Comparison(claim="C2", outcome="distinct", treated="aepo", control="arpo"),
    Comparison(claim="C2", outcome="distinct", treated="aepo", control="grpo"),
    Comparison(claim="C3", outcome="restlessness", treated="aepo", control="grpo", direction=-1),
    Comparison(claim="C3", outcome="restlessness", treated="aepo", control="arpo", direction=-1),
    Comparison(claim="C3", outcome="entropy", treated="aepo", control="grpo"),
    Comparison(claim="C4", outcome="drop", treated="arpo", control="grpo", statistic="mean"),
    Comparison(claim="C4", outcome="drop", treated="aepo", control="arpo", direction=-1, statistic="mean"),
    Comparison(claim="C5", outcome="area", treated="M", control=WITHOUT),
    Comparison(claim="C6", outcome="area", treated="P", control=WITHOUT),
    Comparison(claim="C6", outcome="concentration", treated="P", control=WITHOUT, beds=("burst",), direction=-1),
    Comparison(claim="C7", outcome="area", treated="S", control=WITHOUT),
    Comparison(claim="C8", outcome="area", treated="A", control=WITHOUT),
    Comparison(claim="C9", outcome="area", treated="arpo", control="random_branching"),
    Comparison(claim="C9", outcome="area", treated="aepo", control="random_branching"),
    Comparison(claim="C10", outcome="calls", treated="aepo", control="grpo", direction=-1),
    Comparison(claim="C11", outcome="final pass@4", treated="aepo", control="grpo"),
    Comparison(claim="C12", outcome="entropy beyond the bound", treated="grpo", control=NOTHING),
)
