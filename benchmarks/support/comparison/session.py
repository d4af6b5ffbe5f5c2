"""Runs of a comparison side by side, each in a process of its own, with what is left when it is interrupted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from time import monotonic, sleep
from typing import Any

from benchmarks.support.comparison.commands import (
    code_digest,
    cold_start_name,
    cold_start_words,
    configuration_digest,
    run_folder,
    words_of,
)
from benchmarks.support.comparison.results import DONE, FAILED, append, load
from benchmarks.support.comparison.runs import Record, make_cold_start, make_run
from benchmarks.support.comparison.settings import Bed, Job
from benchmarks.support.gpu_case import Case, Outcome, RunningCase, Setting

LIMIT_S = 3600.0
"""After which a run counts as hung."""
_LOOK_S = 0.05
_LAST_LINES = 8


@dataclass(slots=True, kw_only=True)
class Session:
    """All runs of one command, within its budget.

    `close` ends what is in flight; nothing else is lost.
    """

    out: Path
    beds: Mapping[str, Bed]
    num_side_by_side: int = 1
    budget_s: float = float("inf")
    """Seconds after which no run is started; what is in flight at their end is ended."""
    say: Callable[[str], None] = print
    _start: float = field(default_factory=monotonic)
    _running: dict[RunningCase, Job | Path] = field(default_factory=dict)
    """A run, or the cold start that goes to a folder."""
    _seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of finished runs, by bed."""
    _broken: set[Path] = field(default_factory=set)
    """Cold starts that failed."""

    @property
    def results_path(self) -> Path:
        """Where results are appended."""
        return self.out / "results.jsonl"

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those runs that have no result of the present configuration, in order."""
        found, num_damaged = load(self.results_path)
        if num_damaged:
            self.say(f"{self.results_path} has {num_damaged} damaged lines: what they were about is made again.")
        return [job for job in jobs if not self._is_there(found.get(job), job)]

    def present(self, jobs: Sequence[Job]) -> dict[Job, Record]:
        """Return the results of the present configuration, and of those runs that have none, how they failed."""
        found, _ = load(self.results_path)
        known = {job: found[job] for job in jobs if job in found}
        return {job: each for job, each in known.items() if self._is_there(each, job) or each["status"] == FAILED}

    def _is_there(self, record: Record | None, job: Job) -> bool:
        if record is None or record["status"] != DONE:
            return False
        return bool(record["configuration"] == configuration_digest(job.bed, self.beds[job.bed], job.algorithm))

    def run(self, jobs: Sequence[Job]) -> bool:
        """Make all runs that are missing; return whether all are there and well."""
        waiting = self.missing(jobs)
        self.say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are there.")
        num_failed = 0
        try:
            while waiting or self._running:
                while self._can_start() and (started := self._start_next(waiting)):
                    waiting = [job for job in waiting if job != started]
                over = [each for each in self._running if each.is_over]
                for each in over:
                    num_failed += not self._finish(each, waiting)
                if self._is_late() or (waiting and not self._running and not self._can_start()):
                    self.say(f"The time is up: {len(waiting) + len(self._running)} runs are not made.")
                    return False
                if waiting and not self._running and not self._startable(waiting):
                    self.say(f"{len(waiting)} runs have no cold start.")
                    return False
                if not over:
                    sleep(_LOOK_S)
        finally:
            self.close()
        return num_failed == 0

    def close(self) -> None:
        """End what is in flight."""
        for each in self._running:
            each.end()
        self._running.clear()

    def _is_late(self) -> bool:
        return monotonic() - self._start >= self.budget_s

    def _can_start(self) -> bool:
        return len(self._running) < self.num_side_by_side and not self._is_late()

    def _startable(self, waiting: Sequence[Job]) -> list[Job]:
        return [job for job in waiting if self._cold_start(job) not in self._broken]

    def _start_next(self, waiting: Sequence[Job]) -> Job | Path | None:
        """Start the first run that can be, or the cold start that it waits for; return what was started."""
        for job in self._startable(waiting):
            cold_start = self._cold_start(job)
            if cold_start.is_dir():
                words = words_of(job, self.beds[job.bed])
                self._start_case(job.name, partial(make_run, words, run_folder(self.out, job), cold_start), job)
                return job
            if cold_start not in self._running.values():
                words = cold_start_words(job, self.beds[job.bed])
                self._start_case(
                    f"coldstart/{cold_start.name}", partial(make_cold_start, words, cold_start), cold_start
                )
                return cold_start
        return None

    def _cold_start(self, job: Job) -> Path:
        return self.out / "coldstarts" / cold_start_name(job.bed, self.beds[job.bed], job.seed)

    def _start_case(self, title: str, run: Callable[..., None], what: Job | Path) -> None:
        part, _, name = title.partition("/")
        for folder in ("logs", "coldstarts", "runs"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        case = Case(part=part, name=name, limit_s=LIMIT_S, run=run)
        setting = Setting(device="cpu", is_dry=False, out=self.out, limit_s=LIMIT_S)
        self._running[RunningCase(case, setting, self.out / "logs")] = what

    def _finish(self, running: RunningCase, waiting: Sequence[Job]) -> bool:
        """Keep what came of a process; return whether it ended well."""
        what, outcome = self._running.pop(running), running.wait()
        is_done = outcome.status == "done"
        if isinstance(what, Path):
            if not is_done:
                self._broken.add(what)
                self.say(f"cold start {what.name} {outcome.status}: {_last_lines(outcome)}")
            return is_done
        append(self.results_path, self._record(what, outcome))
        if is_done:
            self._seconds.setdefault(what.bed, []).append(outcome.seconds)
        else:
            self.say(f"{what.name} {outcome.status}: {_last_lines(outcome)}")
        self.say(f"{what.name} {_curve_in_words(outcome)}{outcome.seconds:.0f} s; {self._left_in_words(waiting)}")
        return is_done

    def _record(self, job: Job, outcome: Outcome) -> Record:
        bed = self.beds[job.bed]
        is_done = outcome.status == "done"
        found: dict[str, Any] = {
            "bed": job.bed,
            "algorithm": job.algorithm,
            "seed": job.seed,
            "status": DONE if is_done else FAILED,
            "configuration": configuration_digest(job.bed, bed, job.algorithm),
            "code": code_digest(job.bed, bed),
            "budgets": {"tokens": bed.num_generated_tokens, "calls": bed.num_answered_calls},
            "seconds": round(outcome.seconds, 1),
        }
        return found | (dict(outcome.figures) if is_done else {"problem": _last_lines(outcome)})

    def _left_in_words(self, waiting: Sequence[Job]) -> str:
        runs = [what for what in self._running.values() if isinstance(what, Job)]
        left = [*waiting, *runs]
        every = [seconds for own in self._seconds.values() for seconds in own]
        if not every:
            return f"{len(left)} left"
        seconds = sum(fmean(self._seconds.get(job.bed) or every) for job in left) / self.num_side_by_side
        return f"{len(left)} left, about {seconds / 60:.0f} min"


def _last_lines(outcome: Outcome) -> str:
    return " / ".join(line.strip() for line in outcome.log.splitlines()[-_LAST_LINES:] if line.strip())


def _curve_in_words(outcome: Outcome) -> str:
    values = [value for value in outcome.figures.get("held_out", {}).get("val/pass@1", []) if value is not None]
    return f"pass@1 {values[0]:.3f} -> {values[-1]:.3f}, " if values else ""
