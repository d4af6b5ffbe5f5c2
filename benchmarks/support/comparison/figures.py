"""Pictures of a comparison: for each bed the curves of the main algorithms, and what each one gains over GRPO.

One picture has what claims are judged by, the other what else a run shows: reward, pass@k, variety, and whether terms
of the algorithms act.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aepo_lightning.evaluation.statistics import bootstrap
from benchmarks.support.comparison.claims import ENTROPY, PASS, PASS_K, Comparison, budget_of
from benchmarks.support.comparison.curves import Numbers, Unit, held_out_curve, iteration_curve, known_only, resampled
from benchmarks.support.comparison.results import DONE
from benchmarks.support.comparison.runs import Record
from benchmarks.support.comparison.settings import FIRST, Job, algorithms
from benchmarks.support.comparison.statistics import interquartile_mean
from benchmarks.support.comparison.verdicts import Results

_PLACES = 41
_BAND_RESAMPLES = 500
_X = {"tokens": "generated tokens", "calls": "tool calls"}

Curve: TypeAlias = Callable[[Record, str, Unit], tuple[Numbers, Numbers]]
FURTHER: Sequence[tuple[str, Curve, str, Unit]] = (
    ("held-out pass@4", held_out_curve, PASS_K, "tokens"),
    ("held-out pass@4", held_out_curve, PASS_K, "calls"),
    ("held-out reward", held_out_curve, "val/reward", "tokens"),
    ("held-out reward", held_out_curve, "val/reward", "calls"),
    ("distinct trajectories of a group", iteration_curve, "rollout/num_distinct_actions", "tokens"),
    ("worth of branches: reward spread of siblings", iteration_curve, "rollout/sibling_reward_spread", "tokens"),
    ("tokens beyond the upper bound", iteration_curve, "train/clip_fraction_high", "tokens"),
    ("gradient kept beyond a bound", iteration_curve, "train/gradient_mass_preserved_fraction", "tokens"),
)
"""Panels of the second picture: title, where the curve is from, metric, and what it is over."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write two pictures for each bed that has runs, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for bed in results.beds:
        if any(job.bed == bed for job in results.records):
            for name, figure in (("", _figure), ("_further", _further)):
                written.append(folder / f"comparison_{bed}{name}.png")
                figure(results, bed).savefig(written[-1])
    return written


def _figure(results: Results, bed: str) -> Figure:
    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    (over_tokens, over_calls), (entropy, forest) = figure.subplots(2, 2)
    units: tuple[tuple[Axes, Unit], ...] = ((over_tokens, "tokens"), (over_calls, "calls"))
    for axes, unit in units:
        for number, name in enumerate(FIRST):
            curves = [held_out_curve(record, PASS, unit) for record in _records(results, bed, name)]
            _draw_band(axes, curves, budget_of(results.beds[bed], unit), name, number)
        axes.set(xlabel=_X[unit], ylabel="held-out pass@1")
    for number, name in enumerate(FIRST):
        curves = [iteration_curve(record, ENTROPY, "tokens") for record in _records(results, bed, name)]
        _draw_band(entropy, curves, budget_of(results.beds[bed], "tokens"), name, number)
    entropy.set(xlabel=_X["tokens"], ylabel="policy entropy (nats)")
    for axes in (over_tokens, over_calls, entropy):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    _draw_forest(forest, results, bed)
    figure.suptitle(f"{bed}: interquartile means over seeds with 95 % intervals")
    return figure


def _further(results: Results, bed: str) -> Figure:
    figure = Figure(figsize=(14, 7), dpi=110, layout="constrained")
    for axes, (title, curve, metric, unit) in zip(figure.subplots(2, 4).flat, FURTHER, strict=True):
        for number, name in enumerate(FIRST):
            curves = [known_only(*curve(record, metric, unit)) for record in _records(results, bed, name)]
            _draw_band(axes, curves, budget_of(results.beds[bed], unit), name, number)
        axes.set(xlabel=_X[unit], title=title)
        axes.title.set_fontsize("small")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="x-small")
    figure.suptitle(f"{bed}: further curves, interquartile means over seeds with 95 % intervals")
    return figure


def _records(results: Results, bed: str, algorithm: str) -> list[Record]:
    found = [results.records.get(Job(bed, algorithm, seed)) for seed in results.seeds(bed)]
    return [record for record in found if record is not None and record["status"] == DONE]


def _draw_band(
    axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], budget: float, name: str, number: int
) -> None:
    places = np.linspace(0.0, budget, _PLACES)
    rows = resampled(curves, places)
    if not rows.size:
        return
    ends = [bootstrap([column], interquartile_mean, resamples=_BAND_RESAMPLES) for column in rows.T]
    axes.plot(places, interquartile_mean(rows.T), color=f"C{number}", label=name, linewidth=1.4)
    axes.fill_between(
        places, [e.low for e in ends], [e.high for e in ends], color=f"C{number}", alpha=0.15, linewidth=0
    )


def _draw_forest(axes: Axes, results: Results, bed: str) -> None:
    found = []
    for name in algorithms():
        comparison = Comparison(claim="", outcome="area", treated=name, control="grpo", beds=(bed,))
        differences = results.differences(comparison, bed)
        if name != "grpo" and differences.size:
            found.append((name, bootstrap([differences], interquartile_mean)))
    found.sort(key=lambda each: each[1].value)
    for place, (_, effect) in enumerate(found):
        axes.plot([effect.low, effect.high], [place, place], color="C7", linewidth=1.2)
        axes.plot(effect.value, place, "o", color="C0", markersize=4)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize="x-small")
    axes.set_xlabel("mean pass@1 up to the token budget, less GRPO's (by seed)")
    axes.grid(alpha=0.3, axis="x")
