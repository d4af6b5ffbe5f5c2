"""The first screen of a run: which charts stand in which group, and what of a run stands in the HParams tab.

Data only. The names stand in `docs/metrics.md`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Needs = Literal["", "gpu"]
"""What a chart needs to be filled, beside a run whose chains call tools and branch."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of several lines, or of one line within a band."""

    title: str
    tags: tuple[str, ...] = ()
    """Names; of a band: the line, its lower and its upper border."""
    is_band: bool = False
    patterns: tuple[str, ...] = ()
    """Regular expressions for names that depend on settings, matched in whole."""
    optional: tuple[str, ...] = ()
    """Names of what only some runs meet, such as a failure of a tool."""
    needs: Needs = ""


def _each(form: str, *words: str) -> tuple[str, ...]:
    return tuple(form.format(word) for word in words)


_FAILURES = ("empty", "error", "timeout", "unknown_tool", "malformed", "unavailable", "busy", "call_limit", "repeated")
_DEPTHS = ("branches_at_depth_1", "branches_at_depth_2", "branches_at_depth_3", "branches_deeper")

LAYOUT: Mapping[str, tuple[Chart, ...]] = {
    "1 stability": (
        Chart("policy entropy, p10 to p90 (nats)", _each("rollout/entropy{}", "", "_p10", "_p90"), is_band=True),
        Chart(
            "entropy in updates, in rollouts, after tool results (nats)",
            ("train/entropy", "rollout/entropy", "rollout/entropy_after_tool"),
        ),
        Chart(
            "guard: entropy and its band (nats)",
            ("rollout/entropy", "guard/entropy_low"),
            optional=("guard/entropy_high",),
        ),
        Chart(
            "guard: alarms by kind",
            _each("guard/{}", "collapse", "eruption", "unstable", "update", "repetition", "no_signal"),
        ),
        Chart("guard: acts", ("guard/act", "guard/num_acts")),
    ),
    "2 learning": (
        Chart("reward", ("rollout/reward", "val/reward")),
        Chart(
            "parts of the reward",
            _each("rollout/{}", "f1", "correct_fraction", "format_error_fraction"),
            patterns=("rollout/reward_.+",),
        ),
        Chart("reward of trunks and branches", _each("rollout/{}_reward", "trunk", "branch")),
        Chart("held-out pass@k", patterns=(r"val/pass@\d+",)),
        Chart(
            "groups of zero variance; trajectories cut off, and without a reward",
            _each("rollout/{}_fraction", "zero_variance_groups", "truncated", "unscored"),
        ),
    ),
    "3 balance": (
        Chart(
            "m from the root, k - m for branches", _each("rollout/{}", "global_budget", "branch_budget", "num_branches")
        ),
        Chart("branches asked for by depth, over chance", _each("rollout/{}_over_chance", *_DEPTHS)),
        Chart(
            "concentration of branches, and branches asked for in a row, over chance",
            _each("rollout/{}_over_chance", "branch_concentration", "consecutive_branches"),
        ),
        Chart(
            "penalty, and the share of decisions that it turned",
            _each("rollout/{}", "branch_penalty", "penalised_fraction"),
        ),
        Chart(
            "worth of branches: lift over chance, spread among siblings over strangers",
            _each("rollout/{}", "branch_reward_lift", "sibling_reward_spread"),
        ),
    ),
    "4 update": (
        Chart("importance ratio, p1 to p99", _each("train/importance_ratio{}", "", "_p1", "_p99"), is_band=True),
        Chart("importance ratio, p10 to p90", _each("train/importance_ratio{}", "", "_p10", "_p90"), is_band=True),
        Chart("clipped tokens by side", _each("train/clip_fraction_{}", "high", "low", "dual")),
        Chart(
            "gradient of clipped tokens: its share, and what is kept",
            _each("train/gradient_{}_fraction", "preserved", "mass_clipped", "mass_preserved"),
        ),
        Chart(
            "KL to the old policy and to the reference, and of engine and trainer (nats)",
            _each("train/{}_kl", "approx", "mismatch"),
            optional=("train/reference_kl",),
        ),
        Chart(
            "importance weights of trainer over engine",
            _each("train/importance_{}", "weight", "outside_fraction"),
            optional=("experience/max_importance_weight",),
        ),
        Chart("gradient norm", ("train/grad_norm",)),
    ),
    "5 tools": (
        Chart("calls of a trajectory", ("rollout/num_tool_calls",)),
        Chart(
            "time of a call: mean, p50, p95, and waiting (s)",
            _each("rollout/tool_{}_s", "duration", "duration_p50", "duration_p95", "queue"),
        ),
        Chart("failures by kind", _each("rollout/tool_{}_fraction", *_FAILURES)),
        Chart(
            "answered from the cache, or by another chain's call", _each("rollout/tool_{}_fraction", "cached", "shared")
        ),
        Chart(
            "entropy after a result, by its status (nats)",
            ("rollout/entropy_after_ok",),
            optional=_each("rollout/entropy_after_{}", *_FAILURES),
        ),
    ),
    "6 speed": (
        Chart(
            "tokens per second: generation, update, whole iteration",
            ("rollout/tokens_per_s", "throughput/update_tokens_per_s", "throughput/tokens_per_s"),
        ),
        Chart(
            "time by phase (s)",
            _each("time/{}_s", "rollout", "experience", "update", "other", "iteration"),
            optional=("time/checkpoint_s",),
        ),
        Chart("idle and padding", ("rollout/idle_fraction", "experience/padding_share")),
        Chart("busiest rank over the mean of the ranks", ("experience/token_imbalance",)),
        Chart("memory of the process (GiB)", ("memory/host_gib",)),
        Chart("memory of a GPU (GiB)", ("memory/gpu_gib",), needs="gpu"),
        Chart("use of the GPUs in the update (MFU)", ("throughput/update_mfu",), needs="gpu"),
    ),
}
"""Groups in the order of the screen. TensorBoard sorts nothing, but merges the layouts of runs by title."""

FINAL_METRICS = (
    "val/pass@1",
    "val/reward",
    "val/entropy",
    "rollout/reward",
    "rollout/entropy",
    "rollout/zero_variance_groups_fraction",
    "throughput/trajectories_per_s",
)
"""What runs are compared by in the HParams tab: the last value of each."""


def custom_scalars() -> dict[str, dict[str, list[object]]]:
    """Return the layout as TensorBoard's `add_custom_scalars` takes it."""
    return {group: {chart.title: _properties(chart) for chart in charts} for group, charts in LAYOUT.items()}


def _properties(chart: Chart) -> list[object]:
    if chart.is_band:
        return ["Margin", list(chart.tags)]
    names = map(re.escape, (*chart.tags, *chart.optional))
    return ["Multiline", [f"{pattern}$" for pattern in (*names, *chart.patterns)]]
