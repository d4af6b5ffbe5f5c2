"""Recorded runs, judged by the guard as if they were going on."""

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aepo_lightning.callbacks.stability import StabilityWatch
from aepo_lightning.callbacks.stability_limits import Limits, Observation

HEALTHY, COLLAPSED, BETWEEN = "healthy", "collapsed", "between"
_DEAD, _HURT = 0.1, 0.5
"""Of the best pass@1 of a run: what is left where it has collapsed, and what always is where it is healthy."""
_LOST = 0.0
"""Mean reward below which a run that has collapsed stays: right answers are no more than bad formats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A recorded run, what became of it, and when the guard spoke."""

    bed: str
    part: str
    """`calibration` where limits were chosen with it in view, `check` where not, `later` where it was made after."""
    state: str
    first_alarm: int | None
    """Iteration, from 0."""
    kinds: tuple[str, ...]
    """Of its alarms."""
    onset: int | None
    """Iteration from which on rewards stay low; None if they do not."""

    @property
    def delay(self) -> int | None:
        """Iterations from the onset to the first alarm; negative where the alarm was first."""
        return None if self.first_alarm is None or self.onset is None else self.first_alarm - self.onset


def judge_file(path: Path, limits: Limits) -> list[Judged]:
    """Judge every run of a compressed file of JSON lines."""
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [judge(json.loads(row), limits) for row in rows]


def judge(row: Mapping[str, Any], limits: Limits) -> Judged:
    """Judge a run.

    Args:
        row: Its bed and part, `pass@1` of its validations, and under the names of `Observation` a number (or None) for
            each iteration.
        limits: Of the guard.
    """
    first, kinds = first_alarm(observations(row), limits)
    state = state_of(row["pass@1"])
    return Judged(
        bed=row["bed"],
        part=row["part"],
        state=state,
        first_alarm=first,
        kinds=kinds,
        onset=onset_of(row["reward"]) if state == COLLAPSED else None,
    )


def first_alarm(seen: Iterator[Observation], limits: Limits) -> tuple[int | None, tuple[str, ...]]:
    """Return iteration and kinds of the first alarm."""
    watch = StabilityWatch(limits)
    for iteration, each in enumerate(seen):
        if kinds := watch.observe(each).kinds:
            return iteration, tuple(sorted(kinds))
    return None, ()


def observations(row: Mapping[str, Any]) -> Iterator[Observation]:
    """Yield what the guard would have seen, iteration by iteration."""
    names = [each.name for each in fields(Observation) if each.name in row]
    for values in zip(*(row[name] for name in names), strict=True):
        known = (math.nan if value is None else float(value) for value in values)
        yield Observation(**dict(zip(names, known, strict=True)))


def state_of(rates: Sequence[float]) -> str:
    """Return what became of a run, by its pass@1 on held-out questions."""
    end = sum(rates[-2:]) / len(rates[-2:])
    if end <= _DEAD * max(rates):
        return COLLAPSED
    is_healthy = all(rate >= _HURT * max(rates[:place]) for place, rate in enumerate(rates) if place)
    return HEALTHY if is_healthy else BETWEEN


def onset_of(rewards: Sequence[float]) -> int | None:
    """Return the iteration from which on all rewards are low; None if the last is not."""
    last_good = max((place for place, reward in enumerate(rewards) if reward >= _LOST), default=-1)
    return last_good + 1 if last_good + 1 < len(rewards) else None
