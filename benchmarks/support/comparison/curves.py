"""Curves of a run over what it has spent, and the numbers that are read off at equal budgets.

What is spent are the generated tokens or the answered calls of the training rollouts up to the weights that a point is
about. A held-out figure belongs to one moment and is linear between two, and beyond the last one of a run that ended
early it stays; a figure of an iteration is constant over what the iteration has spent, and ends with the run.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.support.comparison.runs import Record

Unit = Literal["tokens", "calls"]
Numbers = NDArray[np.float64]
_COST = {"tokens": "rollout/num_generated_tokens", "calls": "rollout/num_answered_calls"}


def costs(record: Record, unit: Unit) -> Numbers:
    """Return what each iteration of a run has spent."""
    return _numbers(record["iterations"][_COST[unit]])


def held_out_curve(record: Record, name: str, unit: Unit) -> tuple[Numbers, Numbers]:
    """Return what was spent before each validation, and the figure `name` of it; nothing where it was not measured."""
    starts, spent = _numbers(record["iterations"]["step"]), costs(record, unit)
    steps = _numbers(record["held_out"]["step"])
    at = np.array([spent[starts < step].sum() for step in steps])
    values = _numbers(record["held_out"].get(name, [None] * len(steps)))
    known = np.isfinite(values)
    return at[known], values[known]


def iteration_curve(record: Record, name: str, unit: Unit) -> tuple[Numbers, Numbers]:
    """Return what was spent by the end of each iteration, and its figure `name`, NaN where it was not measured."""
    spent = np.cumsum(costs(record, unit))
    return spent, _numbers(record["iterations"].get(name, [None] * len(spent)))


def known_only(at: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Return a curve without the places where nothing was measured."""
    known = np.isfinite(values)
    return at[known], values[known]


def value_at(at: Numbers, values: Numbers, budget: float) -> float:
    """Return the value of a piecewise linear curve at a budget; NaN of a curve without points."""
    return float(np.interp(budget, at, values)) if at.size else float("nan")


def mean_up_to(at: Numbers, values: Numbers, budget: float) -> float:
    """Return the mean of a piecewise linear curve from 0 to a budget: the area under it, per unit of the budget."""
    if not at.size:
        return float("nan")
    inner = (at > 0) & (at < budget)
    places = np.concatenate([[0.0], at[inner], [budget]])
    heights = np.interp(places, at, values)
    return float(np.trapezoid(heights, places) / budget)


def step_mean_up_to(ends: Numbers, values: Numbers, budget: float) -> float:
    """Return the mean of a piecewise constant curve from 0 to a budget, over those pieces that were measured.

    Args:
        ends: What was spent by the end of each piece.
        values: Of each piece; NaN was not measured.
        budget: Where it ends.
    """
    bounds = np.minimum(np.concatenate([[0.0], ends]), budget)
    widths = np.where(np.isfinite(values), np.diff(bounds), 0.0)
    if not widths.sum():
        return float("nan")
    return float(np.nansum(widths * np.nan_to_num(values)) / widths.sum())


def drop_up_to(at: Numbers, values: Numbers, budget: float) -> float:
    """Return how far a curve stands at a budget below its best point until then."""
    if not at.size:
        return float("nan")
    end = value_at(at, values, budget)
    return float(max(end, *values[at <= budget]) - end)


def restlessness_up_to(ends: Numbers, values: Numbers, budget: float) -> float:
    """Return the mean absolute change from one measured piece to the next within a budget, over the mean of these."""
    inside = values[(np.concatenate([[0.0], ends[:-1]]) < budget) & np.isfinite(values)]
    if inside.size < 2 or not inside.mean():
        return float("nan")
    return float(np.abs(np.diff(inside)).mean() / inside.mean())


def resampled(curves: Sequence[tuple[Numbers, Numbers]], places: Numbers) -> Numbers:
    """Return one row for each curve with its values at common places."""
    return np.array([np.interp(places, at, values) for at, values in curves if at.size])


def is_short(record: Record, budgets: Mapping[Unit, float]) -> bool:
    """Return whether a run ended before it had spent its budgets."""
    return any(costs(record, unit).sum() < budget for unit, budget in budgets.items())


def _numbers(values: Sequence[float | None]) -> Numbers:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
