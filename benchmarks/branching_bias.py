"""What each way to branch leaves of the value and of its gradient, exactly: by enumeration of every tree.

    python -m benchmarks.branching_bias [--world fork|long]

Rows are what a decision looks at and where m comes from. The first columns are the bias of the estimated value under
each weighting of the leaves; the last ones the sine of the angle between the expected first step and the true gradient.
0 is no bias, up to rounding. `docs/unbiased_branching.md` explains rows and columns and has the proof.
"""

import argparse

from benchmarks.support.common import print_result
from benchmarks.support.laboratory.enumerated_value import (
    FORK,
    LONG,
    SIGNALS,
    SPLITS,
    UPDATES,
    VALUES,
    distance,
    expectations,
    true_gradient,
    true_value,
)

ROUNDING = 1e-6
"""Weights and rewards of rows are of single precision."""


def cell(number: float) -> str:
    """Return a number as the table shows it."""
    return "0" if abs(number) < ROUNDING else f"{number:+.4f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=["fork", "long"], default="long")
    world = {"fork": FORK, "long": LONG}[parser.parse_args().world]
    truth, figures = true_gradient(world), {}
    print(f"value {true_value(world):.4f}, k = 3\n")
    print("| decision on | m | trees | " + " | ".join((*VALUES, *UPDATES)) + " |")
    print("|---|---|---|" + "---|" * (len(VALUES) + len(UPDATES)))
    for signal, settings in SIGNALS.items():
        for split, sampling in SPLITS.items():
            found = expectations(world, sampling(settings))
            angles = {name: distance(step, truth) for name, step in found.gradients.items()}
            cells = [cell(each) for each in (*found.value_bias.values(), *angles.values())]
            print(f"| {signal} | {split} | {found.num_trees} | " + " | ".join(cells) + " |", flush=True)
            figures[f"{signal}, {split}"] = {"value_bias": dict(found.value_bias), "sine": angles}
    print_result("branching_bias", figures, {})


if __name__ == "__main__":
    main()
