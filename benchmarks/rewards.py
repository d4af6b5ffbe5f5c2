"""Checkers of answers: rules on one core, mathematics through its processes, and expressions made to break it.

    python -m benchmarks.rewards [--parts rules mathematics hostile] [--small]

Rules are counted in seconds of CPU time, mathematics by the clock (on a machine that does something else the figure
is too low; the CPU time of the processes stands beside it). What pairs are like is in `support/rewards_pairs.py`. Needs
the `math` extra. All of it takes some minutes on two cores, `--small` half a minute: its figures are for trying out.
"""

from collections.abc import Mapping
from functools import partial

from benchmarks.support import rewards_parts
from benchmarks.support.parts import Part, Parts, run_parts

_GRACE_S = 2.0
"""Seconds for which a killed process may keep its place, and a new one is awaited."""


def measure_rules(number: int = 20_000) -> Part:
    """Measure the rules; the slowest one has to meet the goal."""
    figures = rewards_parts.measure_rules(number)
    return Part(figures=_rounded(figures), goals={"slowest_rule_per_s": (min(figures.values()), ">=", 20_000)})


def measure_mathematics(number: int = 4_000) -> Part:
    """Measure ordinary pairs through two processes."""
    figures = rewards_parts.measure_mathematics(number)
    goals = {"mathematics_per_s": (figures["per_s"], ">=", 300.0), "mathematics_wrong": (figures["wrong"], "<=", 0.0)}
    return Part(figures=_rounded(figures), goals=goals)


def measure_hostile(number: int = 10_000, num_endless: int = 40, limit_s: float = 5.0) -> Part:
    """Measure hostile expressions with ordinary pairs between them."""
    figures = rewards_parts.measure_hostile(number, num_endless, limit_s)
    goals = {
        "longest_without_a_verdict_s": (figures["longest_without_a_verdict_s"], "<=", limit_s + _GRACE_S),
        "ordinary_wrong": (figures["ordinary_wrong"], "<=", 0.0),
        "hostile_called_right": (figures["called_right"], "<=", 0.0),
    }
    return Part(figures=_rounded(figures), goals=goals)


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


PARTS: Parts = {
    "rules": (measure_rules, partial(measure_rules, 1_000)),
    "mathematics": (measure_mathematics, partial(measure_mathematics, 300)),
    "hostile": (measure_hostile, partial(measure_hostile, 300, 3, 5.0)),
}


if __name__ == "__main__":
    run_parts("rewards", __doc__, PARTS)
