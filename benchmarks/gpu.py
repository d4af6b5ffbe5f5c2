"""Everything that only a GPU can tell, in one command and a bounded time, in order of worth.

    python -m benchmarks.gpu [--parts tests,scores] [--budget 540] [--out FOLDER] [--dry]

Each case is a process of its own with its own time limit (`benchmarks/support/gpu_parts.py`), so that one which fails,
hangs or runs out of memory costs nothing but itself. Results are in FOLDER/gpu.json after each case, with figures that
a case had found before it ended; the ends of all outputs are in FOLDER/gpu.log. `--dry` runs the same code with tiny
sizes, on the CPU unless `--device cuda` is given: it finds mistakes, and its figures mean nothing. docs/gpu.md explains
the parts.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import torch
from torch._inductor import config as inductor

from aepo_lightning.atomic_files import write_json
from benchmarks.support.common import describe_machine, print_result
from benchmarks.support.gpu_case import Case, Goal, Method, Outcome, RunningCase, Setting, process_age_s
from benchmarks.support.gpu_parts import CASES, PARTS

LEAST_S = 8.0
"""Time left under which no case is started."""
POISONED = ("CUDA error: initialization error", "in forked subprocess")
"""What a process says that cannot use the GPU because the one that it was forked from has looked for it."""
DRY_PATIENCE = 5.0
"""How much longer than on a GPU a case may take that only shows whether its code runs, on whatever machine."""


class Session:
    """All cases of one command, within its budget."""

    def __init__(self, setting: Setting, budget_s: float, scratch: Path) -> None:
        """Start the clock.

        Args:
            setting: Of all cases.
            budget_s: Seconds for all of them together.
            scratch: Where outputs and figures lie meanwhile.
        """
        self._setting, self._scratch = setting, scratch
        self._end = monotonic() + budget_s
        self.outcomes: list[Outcome] = []
        self._started: list[RunningCase] = []
        self._method: Method = "fork"

    def run(self, cases: Sequence[Case]) -> None:
        """Run cases in their order, untimed ones that follow each other side by side; results are kept after each."""
        try:
            beside = [running for case in cases if case.is_beside and (running := self._start(case))]
            others = [case for case in cases if not case.is_beside]
            for is_timed, group in groupby(others, key=lambda case: case.is_timed):
                self._run_side_by_side(list(group), 1 if is_timed else self._setting.most_at_once)
            for running in beside:
                self._keep(running.wait())
        finally:
            for running in self._started:
                running.end()

    def _run_side_by_side(self, cases: Sequence[Case], most: int) -> None:
        waiting, running = list(cases), list[RunningCase]()
        while waiting or running:
            while waiting and len(running) < most:
                if found := self._start(waiting.pop(0)):
                    running.append(found)
            over = [each for each in running if each.is_over]
            for each in over:
                running.remove(each)
                self._keep(each.wait())
            if not over:
                sleep(0.05)

    @property
    def figures(self) -> dict[str, Any]:
        """What all cases found, by part and name."""
        found: dict[str, dict[str, Any]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.case.part, {})[outcome.case.name] = outcome.as_json()
        return dict(found)

    @property
    def goals(self) -> dict[str, Goal]:
        """Goals of all cases."""
        return {
            f"{each.case.title}: {name}": (goal[0], goal[1], goal[2])
            for each in self.outcomes
            for name, goal in each.goals.items()
        }

    def _start(self, case: Case) -> RunningCase | None:
        own = case.limit_s * (DRY_PATIENCE if self._setting.is_dry else 1.0)
        limit = min(own, self._end - monotonic())
        if limit < LEAST_S:
            self._keep(Outcome(case=case, status="no time left"))
            return None
        running = RunningCase(case, replace(self._setting, limit_s=limit), self._scratch, self._method)
        self._started.append(running)
        return running

    def _keep(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome.status == "failed" and any(words in outcome.log for words in POISONED):
            self._method = "spawn"  # slower, and safe whatever this process has done to the driver
        print(f"{outcome.case.title}: {outcome.status} after {outcome.seconds:.1f} s", flush=True)
        with (self._setting.out / "gpu.log").open("a", encoding="utf-8") as log:
            log.write(f"==== {outcome.case.title}: {outcome.status} after {outcome.seconds:.1f} s\n{outcome.log}\n")
        write_json(self._setting.out / "gpu.json", {"figures": self.figures, "goals": self.goals})


def read_parts(text: str) -> list[str]:
    """Return the parts that a list names.

    Raises:
        argparse.ArgumentTypeError: If one of them is unknown.
    """
    names = [name for name in text.split(",") if name]
    if unknown := sorted(set(names) - {*PARTS, *(case.title for case in CASES)}):
        raise argparse.ArgumentTypeError(f"parts must be among {', '.join(PARTS)}, but got {', '.join(unknown)}.")
    return names


def main() -> None:
    """Run the parts that were asked for and print the closing line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=read_parts, default=list(PARTS), help=f"of {','.join(PARTS)}, or PART/NAME")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for the whole command")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU unless told otherwise")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="where to compute (default: cuda, dry runs: cpu)")
    arguments = parser.parse_args()
    # Looking for a GPU must not initialise the driver here: processes that are forked afterwards could not use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # A pool of compilers takes longer to start than the few kernels take to be compiled.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    inductor.compile_threads = 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and with it every case
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = arguments.device or ("cpu" if arguments.dry else "cuda")
    most = 1 if device == "cpu" else 4
    setting = Setting(device=device, is_dry=arguments.dry, out=arguments.out.resolve(), most_at_once=most)
    cases = [case for case in CASES if case.part in arguments.parts or case.title in arguments.parts]
    torch.set_num_threads(1 if device == "cpu" else 4)
    with TemporaryDirectory() as scratch:
        session = Session(setting, arguments.budget - process_age_s(), Path(scratch))
        session.run(cases)
    machine = describe_machine()
    write_json(setting.out / "gpu.json", {"machine": machine, "figures": session.figures, "goals": session.goals})
    print(machine)
    print_result("gpu", session.figures, session.goals)


if __name__ == "__main__":
    main()
