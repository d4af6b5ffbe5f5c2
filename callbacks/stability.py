"""Whether a run is stable, judged from a few numbers of each iteration. Knows of no trainer.

`StabilityWatch` is told an `Observation` for each iteration and answers with a `Verdict`: the band in which the entropy
should be, and the alarms.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aepo_lightning.callbacks.stability_limits import Limits, Observation

COLLAPSE, ERUPTION, UNSTABLE = "collapse", "eruption", "unstable"
UPDATE, REPETITION, NO_SIGNAL = "update", "repetition", "no_signal"
KINDS = (COLLAPSE, ERUPTION, UNSTABLE, UPDATE, REPETITION, NO_SIGNAL)
"""Of alarms. The first three are about the entropy: too low or falling, too high or rising, jumping."""
_LEARNED = 0.02
"""Reward by which the newer half of the last iterations must be above the older to count as learning."""
_FEWEST_POINTS = 3
_KEPT = ("_first", "_first_repetition", "_entropies", "_rewards", "_counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What is wrong."""

    kind: str
    reason: str
    """With numbers and units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an observation means."""

    low: float
    """Entropy below is too low, in nats."""
    high: float
    """Entropy above is too high, in nats; infinite where nothing is known yet."""
    alarms: tuple[Alarm, ...]
    is_suspicious: bool
    """Whether something is beyond a limit, be it for too short a time for an alarm."""

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of the alarms."""
        return frozenset(alarm.kind for alarm in self.alarms)


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line through values at 0, 1, 2, ..."""

    slope: float
    slope_error: float
    """Standard error of the slope; 0 where all points lie on the line."""
    spread: float
    """Standard deviation around the line, with two degrees of freedom taken off."""


def fit_line(values: Sequence[float]) -> Line | None:
    """Return the line through values; None through fewer than three."""
    number = len(values)
    if number < _FEWEST_POINTS:
        return None
    centre, mean = (number - 1) / 2, statistics.fmean(values)
    square = sum((place - centre) ** 2 for place in range(number))
    slope = sum((place - centre) * (value - mean) for place, value in enumerate(values)) / square
    rest = sum((value - mean - slope * (place - centre)) ** 2 for place, value in enumerate(values)) / (number - 2)
    return Line(slope, math.sqrt(rest / square), math.sqrt(rest))


@dataclass(slots=True)
class StabilityWatch:
    """Judges iteration after iteration against limits and the run's own first iterations.

    A number that is not finite is left out: it raises no alarm, ends none, and is in no baseline.
    """

    limits: Limits = field(default_factory=Limits)
    _first: list[float] = field(default_factory=list, init=False)
    _first_repetition: list[float] = field(default_factory=list, init=False)
    _entropies: list[float] = field(default_factory=list, init=False)
    _rewards: list[float] = field(default_factory=list, init=False)
    _counts: dict[str, int] = field(default_factory=dict, init=False)

    @property
    def baseline(self) -> float | None:
        """The median entropy of the first iterations, in nats; None until there are enough."""
        return statistics.median(self._first) if len(self._first) >= self.limits.num_baseline else None

    @property
    def band(self) -> tuple[float, float]:
        """The lowest and the highest entropy that raise no suspicion, in nats.

        Until there is a baseline the median so far stands for it, and the band is wider by the factor `sudden`.
        """
        limits = self.limits
        if not self._first:
            return limits.minimum_nats, limits.maximum_nats
        middle, wider = statistics.median(self._first), limits.sudden if self.baseline is None else 1.0
        low, high = limits.relative_low * middle / wider, limits.relative_high * middle * wider
        return max(limits.minimum_nats, low), min(limits.maximum_nats, high)

    def observe(self, seen: Observation) -> Verdict:
        """Take an iteration in and judge it."""
        self._take(seen)
        is_solved = self.limits.until_reward is not None and seen.reward >= self.limits.until_reward
        may_fall = is_solved or self._is_learning()
        found = self._of_level(seen, is_solved, may_fall) if math.isfinite(seen.entropy) else []
        known = {alarm.kind for alarm in found}
        found += [alarm for alarm in self._of_course(seen, may_fall) if alarm.kind not in known]
        found += self._of_other(seen, is_solved)
        low, high = self.band
        return Verdict(low=low, high=high, alarms=tuple(found), is_suspicious=any(self._counts.values()) or bool(found))

    def restart(self) -> None:
        """Forget what led to an alarm, but not the baseline: the run goes on from other weights or settings."""
        self._entropies, self._rewards, self._counts = [], [], {}

    def _take(self, seen: Observation) -> None:
        limits = self.limits
        if math.isfinite(seen.reward):
            self._rewards = [*self._rewards, seen.reward][-2 * limits.window :]
        if math.isfinite(seen.repetition) and len(self._first_repetition) < limits.num_baseline:
            self._first_repetition.append(seen.repetition)
        if math.isfinite(seen.entropy):
            self._entropies = [*self._entropies, seen.entropy][-limits.window :]
            low, high = self.band
            # What jumps away from the first iterations is no part of what the run is like by itself.
            if len(self._first) < limits.num_baseline and (not self._first or low <= seen.entropy <= high):
                self._first.append(seen.entropy)

    def _is_learning(self) -> bool:
        half = len(self._rewards) // 2
        if not half:
            return False
        return statistics.fmean(self._rewards[-half:]) >= statistics.fmean(self._rewards[:-half]) + _LEARNED

    def _of_level(self, seen: Observation, is_solved: bool, may_fall: bool) -> list[Alarm]:
        limits, (low, high) = self.limits, self.band
        is_minimal = seen.entropy < limits.minimum_nats and not is_solved
        is_low = is_minimal or (seen.entropy < low and not may_fall)
        is_high = seen.entropy > high
        is_beyond = self.baseline is not None and not low / limits.sudden <= seen.entropy <= high * limits.sudden
        alarms = []
        for kind, is_bad, bound in (
            (COLLAPSE, is_low, f"below {low if not is_minimal else limits.minimum_nats:.3g}"),
            (ERUPTION, is_high, f"above {high:.3g}"),
        ):
            number = self._count(kind, seen.entropy, is_bad)
            if is_bad and (number >= limits.patience or is_beyond):
                began = "" if self.baseline is None else f", and began at {self.baseline:.3g}"
                reason = f"entropy is {seen.entropy:.3g} nats, {bound} for {_in_a_row(number)}{began}"
                alarms.append(Alarm(kind=kind, reason=reason))
        return alarms

    def _of_course(self, seen: Observation, may_fall: bool) -> list[Alarm]:
        """Judge slope and variance over the window."""
        base, limits = self.baseline, self.limits
        line = fit_line(self._entropies) if len(self._entropies) == limits.window else None
        if not base or line is None or not math.isfinite(seen.entropy):
            return []
        change = line.slope * (limits.window - 1)
        is_clear = abs(line.slope) >= limits.min_significance * line.slope_error
        alarms = []
        if is_clear and abs(change) > limits.max_drift * base and not (change < 0 and may_fall):
            verb, kind = ("rises", ERUPTION) if change > 0 else ("falls", COLLAPSE)
            reason = (
                f"entropy {verb} by {abs(change):.3g} nats over {limits.window} iterations, and began at {base:.3g}"
            )
            alarms.append(Alarm(kind=kind, reason=reason))
        number = self._count(UNSTABLE, line.spread, line.spread > limits.max_spread * base)
        if number >= limits.patience:
            reason = f"entropy jumps by {line.spread:.3g} nats (standard deviation) for {_in_a_row(number)}"
            alarms.append(Alarm(kind=UNSTABLE, reason=reason))
        return alarms

    def _of_other(self, seen: Observation, is_solved: bool) -> list[Alarm]:
        """Judge update, repetition and signal."""
        limits = self.limits
        usual = statistics.median(self._first_repetition) if self._first_repetition else 0.0
        silent = 0.0 if is_solved else seen.zero_variance
        alarms = []
        for kind, name, value, bound in (
            (UPDATE, "KL of the update in nats per token", seen.kl, limits.max_kl),
            (UPDATE, "share of clipped tokens", seen.clip_fraction, limits.max_clip_fraction),
            (UPDATE, "99th percentile of the importance ratio", seen.ratio_tail, limits.max_ratio_tail),
            (REPETITION, "share of repeated text", seen.repetition, usual + limits.max_repetition * (1 - usual)),
            (NO_SIGNAL, "share of groups with equal rewards", silent, limits.max_zero_variance),
        ):
            number = self._count(name, value, value > bound)
            if number >= limits.patience:
                reason = f"{name} is {value:.3g}, above {bound:.3g} for {_in_a_row(number)}"
                alarms.append(Alarm(kind=kind, reason=reason))
        return alarms

    def _count(self, name: str, seen: float, is_beyond: bool) -> int:
        """Return for how many iterations in a row something is beyond its limit; what is unknown changes nothing."""
        if not math.isfinite(seen):
            return 0
        self._counts[name] = self._counts.get(name, 0) + 1 if is_beyond else 0
        return self._counts[name]

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, as plain values."""
        return {name: getattr(self, name).copy() for name in _KEPT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was seen."""
        for name in _KEPT:
            setattr(self, name, state[name].copy())


def _in_a_row(number: int) -> str:
    return "1 iteration" if number == 1 else f"{number} iterations in a row"
