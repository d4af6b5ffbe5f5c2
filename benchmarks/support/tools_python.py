"""The jailed Python pool: calls a second, latencies, and good calls among hangs, memory bombs and floods.

A clean run and a hostile one come from the same pool in the same process. Latency of a call is the time from the moment
it was asked for to its answer, waiting included, with as many callers at a time as there are cores: that is what one
chain feels. In the hostile run a bad call takes the place of a good one, so its caller stands still while it hangs and
further callers keep the cores busy: `NUM_CALLERS` in both runs.
"""

import argparse
import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aepo_lightning.tools.jail import Execution, PythonPool
from aepo_lightning.tools.jail.settings import num_cores
from benchmarks.support.common import print_result

PRINT = "print({n})"
INTEGRATE = "from sympy import *\nx = symbols('x')\nintegrate(x * exp(x) + {n} * x, x)"
BAD = {"hang": "while True:\n    pass", "bomb": "b'x' * 10**10", "flood": "while True:\n    print('x' * 1000)"}
EXPECTED = {"hang": "timeout", "bomb": "memory", "flood": "output", "good": "ok"}
BAD_SHARE = 0.01
TIMEOUT_S = 1.0


@dataclass
class Run:
    """What came of many calls."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    services: list[float] = field(default_factory=list)
    exits: Counter[tuple[str, str]] = field(default_factory=Counter)

    def percentile(self, share: float, values: Sequence[float]) -> float:
        """Milliseconds below which this share of the good calls lies."""
        ordered = sorted(values)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def figures(self) -> dict[str, float]:
        """Good calls a second, processor time (it depends least on the load of the machine), latencies."""
        return {
            "calls_per_s": round(len(self.latencies) / self.seconds, 1),
            "cpu_ms_per_call": round(1000 * self.cpu_s / self.exits.total(), 1),
            "p50_ms": round(self.percentile(0.5, self.latencies), 1),
            "p99_ms": round(self.percentile(0.99, self.latencies), 1),
            "service_p50_ms": round(self.percentile(0.5, self.services), 1),
            "service_p99_ms": round(self.percentile(0.99, self.services), 1),
        }


async def drive(pool: PythonPool, jobs: Sequence[tuple[str, str]], num_callers: int) -> Run:
    """Make calls from a fixed number of callers, each of which waits for its answer before it asks again."""
    run, pending = Run(), iter(jobs)

    async def caller() -> None:
        for kind, code in pending:
            asked = time.perf_counter()
            execution: Execution = await pool.run(code, timeout_s=TIMEOUT_S if kind == "hang" else 30.0)
            run.exits[kind, execution.exit] += 1
            if kind == "good":
                run.latencies.append(time.perf_counter() - asked)
                run.services.append(execution.duration_s)

    started, cpu_before = time.perf_counter(), cpu_seconds()
    await asyncio.gather(*(caller() for _ in range(num_callers)))
    run.seconds, run.cpu_s = time.perf_counter() - started, cpu_seconds() - cpu_before
    return run


def hostile_jobs(num_calls: int) -> list[tuple[str, str]]:
    """Mix prints with bad calls, in a fixed random order."""
    num_bad = int(BAD_SHARE * num_calls)
    jobs = [(kind, code) for kind, code in BAD.items() for _ in range(num_bad)]
    jobs += [("good", PRINT.format(n=n)) for n in range(num_calls - len(jobs))]
    random.Random(0).shuffle(jobs)
    return jobs


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = listing.read_text().split()
        except OSError:  # a thread or process that has just ended
            continue
        for child in children:
            found += [int(child), *descendants(int(child))]
    return found


def cpu_seconds() -> float:
    """Processor time of this process and of all workers with the calls they have ended."""
    ticks = 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # a call that has just ended; its zygote has its time by now
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


async def wait_for_workers(pool: PythonPool, num_workers: int) -> None:
    """Wait until all workers have passed their self-test: a start takes a second of processor time."""
    while pool.num_ready < num_workers:
        await asyncio.sleep(0.1)


async def measure(num_calls: int, num_workers: int, num_callers: int) -> dict[str, object]:
    """Run everything on one pool."""
    before = set(os.listdir("/proc/self/fd")), set(os.listdir("/tmp")), descendants(os.getpid())
    pool = PythonPool(num_workers=num_workers)
    started = time.perf_counter()
    isolation = await pool.start()
    first_s = time.perf_counter() - started
    await wait_for_workers(pool, num_workers)
    print(isolation.description, f"first worker after {first_s:.1f} s, all after {time.perf_counter() - started:.1f} s")

    def jobs(template: str, count: int) -> list[tuple[str, str]]:
        return [("good", template.format(n=n)) for n in range(count)]

    cores = num_cores()
    await drive(pool, jobs(PRINT, 100), cores)
    prints = await drive(pool, jobs(PRINT, max(500, num_calls // 10)), cores)
    print("print, a caller per core:", prints.figures())
    integrals = await drive(pool, jobs(INTEGRATE, max(200, num_calls // 25)), cores)
    print("integrate, a caller per core:", integrals.figures())
    clean = await drive(pool, jobs(PRINT, num_calls), num_callers)
    print(f"clean, {num_callers} callers:", clean.figures())
    hostile = await drive(pool, hostile_jobs(num_calls), num_callers)
    print(f"hostile, {num_callers} callers:", hostile.figures(), dict(hostile.exits))
    answered = sum(hostile.exits.values())
    as_expected = sum(count for (kind, exit_kind), count in hostile.exits.items() if EXPECTED[kind] == exit_kind)
    pool.close()
    after = set(os.listdir("/proc/self/fd")), set(os.listdir("/tmp")), descendants(os.getpid())
    return {
        "first_worker_s": round(first_s, 2),
        "print": prints.figures(),
        "integrate": integrals.figures(),
        "clean": clean.figures(),
        "hostile": hostile.figures(),
        "p99_ratio": round(hostile.figures()["p99_ms"] / clean.figures()["p99_ms"], 2),
        "service_p99_ratio": round(hostile.figures()["service_p99_ms"] / clean.figures()["service_p99_ms"], 2),
        "not_answered": num_calls - answered,
        "not_as_expected": answered - as_expected,
        "left_processes": len(set(after[2]) - set(before[2])),
        "left_descriptors": len(after[0]) - len(before[0]),
        "load": os.getloadavg()[0],
        "workers": num_workers,
        "callers": num_callers,
        "exits": {f"{kind}/{exit_kind}": count for (kind, exit_kind), count in sorted(hostile.exits.items())},
    }


def goals(figures: dict) -> dict[str, tuple[float, str, float]]:
    """Name what must hold."""
    return {
        "print_calls_per_s": (figures["print"]["calls_per_s"], ">=", 150),
        "print_p99_ms": (figures["print"]["p99_ms"], "<=", 50),
        "integrate_calls_per_s": (figures["integrate"]["calls_per_s"], ">=", 40),
        "hostile_p99_ratio": (figures["p99_ratio"], "<=", 2),
        "not_answered": (figures["not_answered"], "<=", 0),
        "not_as_expected": (figures["not_as_expected"], "<=", 0),
        "left_processes": (figures["left_processes"], "<=", 0),
        "left_descriptors": (figures["left_descriptors"], "<=", 0),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-calls", type=int, default=10_000)
    parser.add_argument("--num-workers", type=int, default=4 * num_cores())
    parser.add_argument("--num-callers", type=int, default=4 * num_cores())
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.num_calls, arguments.num_workers, arguments.num_callers))
    print_result("tools_python", figures, goals(figures))


if __name__ == "__main__":
    main()
