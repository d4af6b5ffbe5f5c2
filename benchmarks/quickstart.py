"""The main job, measured: what it reaches, how long it takes, and what other algorithms reach on the same task.

    python -m benchmarks.quickstart [--seeds 0 1 2] [--make-train]

Runs `python train.py` for AEPO with each seed, and once each for GRPO and ARPO. `--make-train` also clones the
checkout and times `make train` in it, installation included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.support.common import describe_machine, print_result

ROOT = Path(__file__).resolve().parent.parent
SOLVED = 0.9
"""Share of correct training trajectories from which on the task counts as solved, for the entropy figures."""


def run_training(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run `train.py` in a process of its own and return its report, its curves and its wall time."""
    start = perf_counter()
    command = [sys.executable, "train.py", f"run_dir={folder}", *overrides]
    with (folder.parent / f"{folder.name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report["wall_s"] = perf_counter() - start
    report["curves"] = read_curves(folder / "tensorboard", ("train/entropy", "rollout/correct_fraction"))
    return report


def read_curves(folder: Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Read scalars from TensorBoard's files as (step, value)."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(scalar.step, scalar.value) for scalar in events.Scalars(name)] for name in names}


def entropy_figures(curves: Mapping[str, list[tuple[int, float]]]) -> dict[str, float]:
    """Return first, lowest and highest policy entropy up to the step at which the task is solved."""
    solved = next((step for step, value in curves["rollout/correct_fraction"] if value >= SOLVED), float("inf"))
    entropies = [value for step, value in curves["train/entropy"] if step <= solved]
    return {"first": entropies[0], "lowest": min(entropies), "highest": max(entropies), "solved_at_step": solved}


def time_make_train(scratch: Path) -> float:
    """Clone the checkout and return how long `make train` takes in the clone, from an empty checkout to the end."""
    clone = scratch / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    start = perf_counter()
    with (scratch / "make_train.log").open("w", encoding="utf-8") as log:
        subprocess.run(["make", "train"], cwd=clone, env=environment, check=True, stdout=log, stderr=log)
    return perf_counter() - start


def print_row(label: str, report: Mapping[str, Any]) -> None:
    """Print one run as a line of the comparison."""
    before, after = report["before"], report["after"]
    print(
        f"{label:14s} pass@1 {before['val/pass@1']:.3f} -> {after['val/pass@1']:.3f}   "
        f"pass@4 {before['val/pass@4']:.3f} -> {after['val/pass@4']:.3f}   "
        f"entropy {before['val/entropy']:.3f} -> {after['val/entropy']:.3f} nats   "
        f"stages {sum(report['seconds'].values()):.0f} s",
        flush=True,
    )


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--baselines", nargs="*", default=["grpo", "arpo"], help="algorithms run with the first seed")
    parser.add_argument("--make-train", action="store_true", help="also time `make train` in a fresh clone")
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        figures, goals = measure(scratch, args.seeds, args.baselines)
        if args.make_train:
            figures["make_train_s"] = seconds = time_make_train(scratch)
            goals["make train (s)"] = (seconds, "<=", 720.0)
    print_result("quickstart", figures, goals)


def measure(
    scratch: Path, seeds: Sequence[int], baselines: Sequence[str]
) -> tuple[dict[str, Any], dict[str, tuple[float, str, float]]]:
    """Run every training and return figures and goals."""
    runs: dict[str, dict[str, Any]] = {}
    jobs = [("aepo", seed) for seed in seeds] + [(baseline, seeds[0]) for baseline in baselines]
    for algorithm, seed in jobs:
        label = f"{algorithm} seed {seed}"
        runs[label] = run_training(scratch / f"{algorithm}-{seed}", [f"algorithm={algorithm}", f"seed={seed}"])
        print_row(label, runs[label])
    own = [run for label, run in runs.items() if label.startswith("aepo")]
    entropies = {label: entropy_figures(run["curves"]) for label, run in runs.items()}
    figures: dict[str, Any] = {
        label: {
            "pass@1": [run[when]["val/pass@1"] for when in ("before", "after")],
            "pass@4": [run[when]["val/pass@4"] for when in ("before", "after")],
            "stages_s": run["seconds"],
            "wall_s": run["wall_s"],
            "entropy_until_solved_nats": entropies[label],
        }
        for label, run in runs.items()
    }
    figures["median_stages_s"] = statistics.median(sum(run["seconds"].values()) for run in own)
    own_entropies = [entropies[label] for label in runs if label.startswith("aepo")]
    goals = {
        "highest pass@1 before": (max(run["before"]["val/pass@1"] for run in own), "<=", 0.40),
        "lowest pass@1 after": (min(run["after"]["val/pass@1"] for run in own), ">=", 0.90),
        "longest of all three stages (s)": (max(sum(run["seconds"].values()) for run in own), "<=", 180.0),
        "lowest entropy until solved (nats)": (min(found["lowest"] for found in own_entropies), ">=", 0.01),
        "highest over first entropy": (max(f["highest"] / f["first"] for f in own_entropies), "<=", 2.0),
    }
    for algorithm in baselines:
        gain = [run["after"]["val/pass@1"] - run["before"]["val/pass@1"] for k, run in runs.items() if algorithm in k]
        goals[f"{algorithm} gain in pass@1"] = (min(gain), ">=", 0.2)
    return figures, goals


if __name__ == "__main__":
    main()
