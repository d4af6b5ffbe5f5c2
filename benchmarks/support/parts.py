"""Benchmarks in parts, which are measured one after another and judged together."""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.support.common import describe_machine, print_result

Goals = Mapping[str, tuple[float, str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of a benchmark found."""

    figures: Mapping[str, object]
    goals: Goals = field(default_factory=dict)


Parts = Mapping[str, tuple[Callable[[], Part], Callable[[], Part]]]
"""By name: the part, and a small version of it."""


def run_parts(name: str, description: str | None, parts: Parts) -> None:
    """Measure the parts that the command line names and print them, each with its time and the load before it.

    Args:
        name: Of the benchmark.
        description: Of its command line.
        parts: All that there are.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--small", action="store_true", help="small sizes, to try the benchmark out")
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    figures: dict[str, object] = {"is_small": args.small}
    goals: dict[str, tuple[float, str, float]] = {}
    for each in args.parts:
        started, load = time.perf_counter(), os.getloadavg()[0]
        part = parts[each][args.small]()
        figures[each] = {**part.figures, "took_s": round(time.perf_counter() - started, 1), "load": round(load, 2)}
        goals |= part.goals
        print(each, figures[each], flush=True)
    print_result(name, figures, goals)
