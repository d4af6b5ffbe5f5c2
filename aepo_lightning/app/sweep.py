"""Runs of `--multirun`: each in a process and a folder of its own, and a table of all at the end.

A process of its own gives back all memory of a GPU, and what goes wrong in one job does not end the others.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from aepo_lightning.app.paths import as_path
from aepo_lightning.app.run_folder import choose_run_folder
from aepo_lightning.app.words import parse, quoted
from aepo_lightning.errors import AepoError, ConfigError

_METRIC = "val/pass@1"
_WIDE = 200
"""Columns of a table that goes to a file."""
_PASSED_ON = ("hydra.verbose", "hydra.job_logging", "hydra/job_logging", "hydra.searchpath")


@dataclass(slots=True, kw_only=True)
class SweepJob:
    """One run of a sweep."""

    number: int
    name: str
    overrides: list[str]
    folder: Path | None = None
    status: int | None = None
    """Exit status; None while it runs, or where it has not started."""
    problem: str = ""

    def figures(self) -> tuple[str, str]:
        """Return what was measured on held-out questions before and after, or how it failed."""
        if self.status is None:
            return "-", "not finished"
        if self.status:
            return "-", self.problem or f"failed, exit status {self.status}"
        assert self.folder is not None, "it has run"
        try:
            report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "-", "-"
        before, after = (report[stage].get(_METRIC) for stage in ("before", "after"))
        return _shown(before), _shown(after)


@dataclass(slots=True)
class Sweep:
    """The jobs of one command."""

    words: Sequence[str]
    """Of the command line."""
    jobs: list[SweepJob] = field(default_factory=list)

    @staticmethod
    def is_asked_for(words: Sequence[str]) -> bool:
        """Return whether a command line asks for a sweep."""
        flags, _ = get_args_parser().parse_known_args(list(words))
        return bool(flags.multirun or "hydra.mode=MULTIRUN" in words)

    def words_with_folder(self, folder: Path) -> list[str]:
        """Return the words of the command line, with a folder for what Hydra writes unless they name one."""
        if any(word.startswith("hydra.sweep.dir=") for word in self.words):
            return list(self.words)
        return [f"hydra.sweep.dir={quoted(folder)}", *self.words]  # overrides come before flags

    def run(self, cfg: DictConfig) -> None:
        """Run the job whose configuration Hydra has composed, and note what came of it.

        Raises:
            ConfigError: If no job of the sweep could have a folder of its own.
        """
        hydra = HydraConfig.get()
        job = SweepJob(number=hydra.job.num, name=str(cfg.name), overrides=list(hydra.overrides.task))
        self.jobs.append(job)
        run_dir = self._run_dir(cfg, job.number)
        try:
            job.folder = choose_run_folder(cfg.output_root, cfg.name, run_dir, cfg.ckpt_path, job.number)
        except AepoError as error:
            job.status, job.problem = 1, str(error)
            return
        process = subprocess.Popen(self._command(job))
        with _passing_on_termination(process):
            job.status = process.wait()

    def _run_dir(self, cfg: DictConfig, number: int) -> Path | None:
        if cfg.run_dir is None:
            if cfg.ckpt_path == "last":
                raise ConfigError(
                    "`ckpt_path` must not be 'last' in a sweep without `run_dir`, since every job would continue the "
                    "same run. Give the run_dir of the sweep, below which each job has a folder, or continue one run."
                )
            return None
        is_own = OmegaConf.is_interpolation(cfg, "run_dir") or "run_dir" in self._swept()
        folder = as_path(cfg.run_dir, "run_dir")
        return folder if is_own else folder / str(number)

    def _swept(self) -> set[str]:
        parsed = [parse(word) for word in self.words if "=" in word and not word.startswith("-")]
        return {each.get_key_element() for each in parsed if each is not None and each.is_sweep_override()}

    def _command(self, job: SweepJob) -> list[str]:
        flags, _ = get_args_parser().parse_known_args(list(self.words))
        spec = sys.modules["__main__"].__spec__
        program = [sys.argv[0]] if spec is None else ["-m", spec.name]
        for name in ("config_dir", "config_name", "config_path"):
            if value := getattr(flags, name):
                program += [f"--{name.replace('_', '-')}", value]
        passed_on = [word for word in self.words if word.startswith(_PASSED_ON)]
        own = [word for word in job.overrides if not word.startswith("run_dir=")]
        place = [f"run_dir={quoted(job.folder)}" if job.folder else "", f"hydra.job.num={job.number}"]
        return [sys.executable, *program, *own, *passed_on, *place, f"hydra.job.id={job.number}"]

    def table(self) -> Table:
        """Return one row for each job."""
        swept = self._swept()
        table = Table(title=f"{len(self.jobs)} jobs, {_METRIC} on held-out questions", title_justify="left")
        for heading in ("job", "name", "overrides", "before", "after", "folder"):
            table.add_column(heading, overflow="fold", justify="right" if heading in ("before", "after") else "left")
        for job in self.jobs:
            own = [word for word in job.overrides if not swept or word.partition("=")[0] in swept]
            folder = "-" if job.folder is None else str(job.folder)
            table.add_row(str(job.number), job.name, " ".join(own), *job.figures(), folder)
        return table

    def show(self) -> None:
        """Print the table of what has been started."""
        console = Console()
        if self.jobs:
            (console if console.is_terminal else Console(width=_WIDE)).print(
                self.table(), highlight=False, markup=False
            )

    @property
    def is_failed(self) -> bool:
        """Whether one of the jobs failed."""
        return any(job.status != 0 for job in self.jobs)


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


@contextmanager
def _passing_on_termination(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let a signal that ends the sweep end its job first, and wait for that."""
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    is_main = current_thread() is main_thread()
    before = signal.signal(signal.SIGTERM, pass_on) if is_main else None
    try:
        yield
    except BaseException:
        process.wait()  # it has the interrupt of the terminal too
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
    if received:
        sys.exit(128 + received[0])
