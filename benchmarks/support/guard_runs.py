"""Short runs of the main job from one cold start: left alone, or made to collapse or to erupt."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aepo_lightning.callbacks.stability import KINDS

ROOT = Path(__file__).resolve().parents[2]
_SHORT = (
    "data.num_val_questions=8",
    "data.questions_per_iteration=16",
    "algorithm.budget=8",
    "rollout.sampling.max_response_tokens=128",  # where nothing ends a trajectory it would take long
    "publication_check=null",
    "rollout.keep_weights=0",
)
STEPS_PER_ITERATION = 2
"""16 questions, 8 of them an optimiser step."""
_FAST = "module.optimizer.lr=1e-2"
HARMS: Mapping[str, tuple[str, ...]] = {
    "bonus": ("module.entropy_coefficient=3.0", _FAST),
    "malus": ("module.entropy_coefficient=-3.0", _FAST),
    "rate": ("algorithm.objective.preserve_high=0.0", _FAST),
}
"""What is done to a run, at 20 times the rate: a bonus for entropy, a penalty for it, no stop-gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the guard and the rollouts said, iteration by iteration."""

    label: str
    entropies: list[float]
    rewards: list[float]
    alarms: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def first(self) -> int | None:
        """Iteration of the first alarm, from 0."""
        return next((place for place, kinds in enumerate(self.alarms) if kinds), None)

    def first_of(self, wanted: set[str]) -> int | None:
        """Return the iteration of the first alarm of one of some kinds."""
        return next((place for place, kinds in enumerate(self.alarms) if wanted & set(kinds)), None)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the first alarm."""
        return () if self.first is None else self.alarms[self.first]


def cold_start(out: Path, num_steps: int) -> Path:
    """Train the policy that all runs begin with, unless it is there; return its folder."""
    folder = out / f"cold-{num_steps}"
    if not (folder / "report.json").exists():
        _train(folder, [f"coldstart.num_steps={num_steps}", "trainer.max_epochs=1", "data.num_val_questions=8"])
    return folder / "coldstart"


def make_run(out: Path, start: Path, label: str, seed: int, num_iterations: int, words: tuple[str, ...] = ()) -> Run:
    """Make a run, unless it is there, and read what it logged."""
    folder = out / label
    if not (folder / "report.json").exists():
        own = ["model=hf", f"model.name_or_path={start}", "coldstart=none", f"seed={seed}"]
        lengths = [f"trainer.max_epochs={num_iterations}", f"trainer.check_val_every_n_epoch={num_iterations}"]
        _train(folder, [*own, *lengths, *_SHORT, *words])
    return read_run(folder / "tensorboard", label)


def _train(folder: Path, words: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what was interrupted is made anew
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", f"run_dir={folder}", *words]
    with (folder.parent / f"{folder.name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            command, cwd=ROOT, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def read_run(folder: Path, label: str) -> Run:
    """Read a run from TensorBoard's files."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()

    def values(name: str) -> list[float]:
        return [scalar.value for scalar in events.Scalars(name)]

    columns = {kind: values(f"guard/{kind}") for kind in KINDS}
    alarms = [tuple(kind for kind in KINDS if columns[kind][place]) for place in range(len(columns[KINDS[0]]))]
    return Run(label=label, entropies=values("rollout/entropy"), rewards=values("rollout/reward"), alarms=alarms)
