"""One measurement of `benchmarks.gpu`: a process of its own with a time limit, whose figures are kept as they come."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from aepo_lightning.atomic_files import write_json

Goal = tuple[float, str, float]
"""A figure, `<=` or `>=`, and its bound."""
Status = Literal["done", "failed", "out of time", "no time left"]
Method = Literal["fork", "spawn"]
_PR_SET_PDEATHSIG = 1
MOST_LOG = 100_000
"""Characters of a case's output that are kept: the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every case is told."""

    device: str
    is_dry: bool
    """Tiny sizes, whatever the device."""
    out: Path
    """A folder for what comes back beside the figures."""
    limit_s: float = 600.0
    """Time limit of the case."""
    most_at_once: int = 1
    """Untimed cases that run side by side."""


@dataclass(slots=True, kw_only=True)
class CaseReport:
    """Figures and goals of a case, on the disk after every addition."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    goals: dict[str, Goal] = field(default_factory=dict)

    def add(self, figures: Mapping[str, Any], goals: Mapping[str, Goal] | None = None) -> None:
        """Keep more figures and goals, and print them."""
        self.figures |= figures
        self.goals |= goals or {}
        print(json.dumps(dict(figures)), flush=True)
        write_json(self.path, {"figures": self.figures, "goals": self.goals})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to measure."""

    part: str
    name: str
    limit_s: float
    run: Callable[[Setting, CaseReport], None]
    is_timed: bool = True
    """Whether nothing else may compute on the GPU meanwhile."""
    is_beside: bool = False
    """Whether it leaves the GPU alone, so that others are measured meanwhile."""

    @property
    def title(self) -> str:
        """Part and name."""
        return f"{self.part}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a case ended, and what it found until then."""

    case: Case
    status: Status
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    goals: Mapping[str, Goal] = field(default_factory=dict)
    log: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it; of one that did not end well, the last lines, too."""
        found = {"status": self.status, "seconds": round(self.seconds, 1), "figures": dict(self.figures)}
        if self.status in ("failed", "out of time"):
            found["last_lines"] = self.log.splitlines()[-12:]
        return found


class RunningCase:
    """A case in a process of its own, the first of a session, so that whatever it starts ends with it."""

    def __init__(self, case: Case, setting: Setting, scratch: Path, method: Method = "fork") -> None:
        """Start it.

        Args:
            case: What to measure.
            setting: Its setting.
            scratch: Where its output and figures lie meanwhile.
            method: A fork need not import again what this process has imported, which must not have used CUDA.
        """
        self.case = case
        self._limit_s = setting.limit_s
        name = case.title.replace("/", ".")
        self._log, self._figures = scratch / f"{name}.log", scratch / f"{name}.json"
        report = CaseReport(path=self._figures)
        context = get_context(method)
        self._process: BaseProcess = context.Process(target=_run, args=(case, setting, report, self._log))
        self._start = monotonic()
        self._process.start()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or must be."""
        return self._process.exitcode is not None or monotonic() - self._start >= self._limit_s

    def wait(self) -> Outcome:
        """Wait until it ends, or end it at its limit, and return what it found."""
        self._process.join(max(0.0, self._limit_s - (monotonic() - self._start)))
        status: Status = "done" if self._process.exitcode == 0 else "failed"
        if self._process.exitcode is None:
            status = "out of time"
        self.end()
        found: dict[str, Any] = {"figures": {}, "goals": {}}
        if self._figures.exists():
            found = json.loads(self._figures.read_text(encoding="utf-8"))
        log = self._log.read_text(encoding="utf-8", errors="replace")[-MOST_LOG:] if self._log.exists() else ""
        return Outcome(case=self.case, status=status, seconds=monotonic() - self._start, log=log, **found)

    def end(self) -> None:
        """End the process and whatever it has started."""
        pid = self._process.pid
        assert pid is not None, "it was started"
        for _ in range(2):  # before it leads a session, it cannot be found by one
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            if self._process.exitcode is None:
                self._process.kill()
            self._process.join()


def process_age_s() -> float:
    """Return for how long this process has lived, its imports included."""
    ticks = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text("utf-8").split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def _run(case: Case, setting: Setting, report: CaseReport, log: Path) -> None:
    """Run a case in its own process; what it raises is printed, and is its exit status."""
    os.setsid()
    _end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Whatever Python wrote to before, as where tests are run, is not this.
    sys.stdout = sys.stderr = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    case.run(setting, report)


def _end_with_parent() -> None:
    """Have the system end this process when the one that started it ends, however that happens."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("The process that started this one is gone.")
