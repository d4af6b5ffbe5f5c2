"""Whether the guard catches runs that are made to collapse and to erupt, and leaves healthy ones alone.

    python -m benchmarks.guard [--small] [--out FOLDER] [--jobs N]

Live: short runs of the main job from one cold start, with the default guard. Ten seeds are left alone. Others have 20
times the learning rate and a large bonus for entropy (they erupt), a penalty for it (they collapse), or neither and no
stop-gradient (whatever comes of it). Recorded: runs of `benchmarks.algorithms` on its three test beds, judged from
their committed series; what became of them is told by pass@1 on held-out questions. docs/guard.md has the figures.

`--small` makes two healthy runs and one of each other kind. Runs that lie whole in FOLDER are not made again,
those that were interrupted are made anew. All of them take some seven minutes of a core, of which the cold start, which
comes before the others, takes one and a half.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aepo_lightning.callbacks.stability_limits import Limits
from benchmarks.support.common import describe_machine, print_result
from benchmarks.support.guard_runs import HARMS, STEPS_PER_ITERATION, Run, cold_start, make_run
from benchmarks.support.guard_series import COLLAPSED, HEALTHY, Judged, judge_file

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "docs" / "data" / "guard.jsonl.gz"
NUM_ITERATIONS = 8
NUM_HEALTHY, NUM_HARMED = 10, 2
COLD_STEPS = 650
CAUGHT_WITHIN_STEPS = 16
"""Optimiser steps from the first one; the baseline takes six of them."""
EXPECTED = {"bonus": {"eruption"}, "malus": {"collapse"}, "rate": {"collapse", "eruption", "update", "no_signal"}}
"""Kinds of alarms of which one counts as catching it."""
Goals = dict[str, tuple[float, str, float]]


def main() -> None:
    """Make the runs, judge the recorded ones, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two healthy runs and one of each other kind")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: one that is removed at the end")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    figures, goals = recorded(judge_file(COMMITTED, Limits()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.out or Path(scratch)).resolve()
        found, more = live(folder, is_small=arguments.small, num_jobs=arguments.jobs)
    print_result("guard", {"recorded": figures, "live": found}, goals | more)


def recorded(runs: Sequence[Judged]) -> tuple[dict[str, Any], Goals]:
    """Return how many recorded runs of each part were caught or left alone."""
    figures: dict[str, Any] = {}
    for part, bed in sorted({(run.part, run.bed) for run in runs}):
        own = [run for run in runs if (run.part, run.bed) == (part, bed)]
        figures[f"{part} {bed}"] = row = summary(own)
        print(f"{part:12s} {bed:10s} {row}", flush=True)
    unseen = summary([run for run in runs if run.part != "calibration"])
    goals: Goals = {
        "false alarms, recorded, not calibrated on": (unseen["false_alarms"], "<=", 0),
        "share of collapses caught, recorded, not calibrated on": (unseen["caught"] / unseen["collapsed"], ">=", 0.9),
        "median delay, recorded, not calibrated on (iterations)": (unseen["median_delay"], "<=", 2),
    }
    return figures, goals


def summary(runs: Sequence[Judged]) -> dict[str, Any]:
    """Return counts over runs, and the delays of what was caught, in iterations."""
    healthy = [run for run in runs if run.state == HEALTHY]
    collapsed = [run for run in runs if run.state == COLLAPSED]
    caught = [run for run in collapsed if run.first_alarm is not None]
    delays = sorted(run.delay for run in caught if run.delay is not None)
    return {
        "healthy": len(healthy),
        "false_alarms": sum(run.first_alarm is not None for run in healthy),
        "collapsed": len(collapsed),
        "caught": len(caught),
        "delays": delays,
        "median_delay": delays[len(delays) // 2] if delays else None,
        "kinds": dict(Counter(kind for run in caught for kind in run.kinds)),
        "between": len(runs) - len(healthy) - len(collapsed),
        "between_alarmed": sum(run.first_alarm is not None for run in runs if run not in healthy + collapsed),
    }


def live(out: Path, *, is_small: bool, num_jobs: int) -> tuple[dict[str, Any], Goals]:
    """Make the runs and return what the guard said of each."""
    start = cold_start(out, COLD_STEPS)
    num_healthy, num_harmed = (2, 1) if is_small else (NUM_HEALTHY, NUM_HARMED)
    wanted = [(name, seed) for name in HARMS for seed in range(num_harmed)]
    wanted += [(HEALTHY, seed) for seed in range(num_healthy)]

    def make(kind: str, seed: int) -> Run:
        return _made(make_run(out, start, f"{kind}-{seed}", seed, NUM_ITERATIONS, HARMS.get(kind, ())))

    with ThreadPoolExecutor(num_jobs) as pool:
        runs = list(pool.map(make, *zip(*wanted, strict=True)))
    goals: Goals = {}
    for name in HARMS:
        own = [run for run, (kind, _) in zip(runs, wanted, strict=True) if kind == name]
        steps = [_steps_until(run.first_of(EXPECTED[name])) for run in own]
        goals[f"{name}: most steps until it is caught"] = (max(steps), "<=", CAUGHT_WITHIN_STEPS)
    healthy = [run for run, (kind, _) in zip(runs, wanted, strict=True) if kind == HEALTHY]
    goals["healthy runs with an alarm"] = (sum(run.first is not None for run in healthy), "<=", 0)
    return {run.label: _told(run) for run in runs}, goals


def _steps_until(iteration: int | None) -> float:
    """Return the optimiser steps that were taken when an iteration is judged."""
    return float("inf") if iteration is None else float((iteration + 1) * STEPS_PER_ITERATION)


def _told(run: Run) -> dict[str, Any]:
    return {
        "first_alarm_iteration": run.first,
        "kinds": list(run.kinds),
        "entropies": [round(value, 4) for value in run.entropies],
        "rewards": [round(value, 3) for value in run.rewards],
    }


def _made(run: Run) -> Run:
    course = " ".join(f"{value:.3g}" for value in run.entropies)
    told = "silent" if run.first is None else f"{', '.join(run.kinds)} in iteration {run.first}"
    print(f"{run.label:12s} {told}; entropy {course}; reward {run.rewards[0]:.2f} -> {run.rewards[-1]:.2f}", flush=True)
    return run


if __name__ == "__main__":
    main()
