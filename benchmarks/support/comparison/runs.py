"""One run or one cold start, in a process of its own that was forked from one with everything imported."""

import csv
import json
import os
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aepo_lightning.app import stages
from aepo_lightning.app.build import build_run
from aepo_lightning.app.command import quieten_libraries
from aepo_lightning.app.run_folder import CONFIG
from aepo_lightning.app.saved_config import save_config
from aepo_lightning.callbacks.learning_curve import HELD_OUT, ITERATION
from benchmarks.support.comparison.commands import configuration_of
from benchmarks.support.gpu_case import CaseReport, Setting

ROOT = Path(__file__).resolve().parents[3]
_OF_COLD_START = ("coldstart", "evaluation_before.json")
_NOT_KEPT = ("time/", "experience/", "rollout/tool_", "rollout/branches_at_", "rollout/tokens_per_s")
"""Columns of the curve that no comparison is about."""

Record = dict[str, Any]
"""What is kept of a run: `iterations` and `held_out`, each a list of numbers (or None) under each name, and figures."""


def make_cold_start(words: Sequence[str], folder: Path, setting: Setting, report: CaseReport) -> None:
    """Do the stages of `train.py` that all algorithms share, and leave their results in `folder`.

    Args:
        words: Of the command line of a run.
        folder: Where the results go, whole or not at all.
        setting: Of the process; not used.
        report: Of the process; nothing is reported.
    """
    del setting, report
    quieten_libraries()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with stages.open_run(configuration_of([*words, f"run_dir={partial}"])) as record:
        policy = stages.cold_start(record)
        run = build_run(record.cfg, policy, record.folder)
        stages.evaluate_before(record, run)
        run.engine.close()
    for each in partial.iterdir():
        if each.name not in _OF_COLD_START:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    partial.rename(folder)


def make_run(words: Sequence[str], folder: Path, cold_start: Path, setting: Setting, report: CaseReport) -> None:
    """Run `train.py` after a cold start that lies there, and report what is kept of the run.

    Args:
        words: Of the command line.
        folder: Of the run; it is removed at the end.
        cold_start: Folder with the results of the stages that all algorithms share.
        setting: Of the process; not used.
        report: Gets the figures.
    """
    del setting
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cold_start, folder)
    own_words = [*words, f"run_dir={folder}", "ckpt_path=last"]
    save_config(configuration_of(own_words), folder / CONFIG)  # so it is the folder of a run that had come as far
    train(own_words)
    report.add(read_run(folder))
    shutil.rmtree(folder)


def train(words: Sequence[str]) -> None:
    """Run `python train.py` with words, in this process."""
    os.chdir(ROOT)
    sys.argv = ["train.py", *words]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise


def read_run(folder: Path) -> Record:
    """Return what is kept of a finished run: figures of every iteration and of every validation.

    Those of validation begin with the one before the training, at step 0.
    """
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    iterations = [row for row in rows if row["kind"] == ITERATION]
    validations = {0: dict(report["before"])}
    for row in rows:
        if row["kind"] == HELD_OUT:
            validations[int(row["step"])] = row
    held_out = [{"step": step, **row} for step, row in sorted(validations.items())]
    return {
        "iterations": _columns(iterations, ("step",), ("rollout/", "train/")),
        "held_out": _columns(held_out, ("step",), ("val/",)),
        "stages_s": {name: round(seconds, 1) for name, seconds in report["seconds"].items()},
    }


def _columns(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], prefixes: tuple[str, ...]
) -> dict[str, list[float | None]]:
    """Return the numbers under each name, None where a row has none."""
    found = {name: None for row in rows for name in row if name.startswith(prefixes)}
    kept = [*names, *(name for name in sorted(found) if not name.startswith(_NOT_KEPT))]
    return {name: [_number(row.get(name)) for row in rows] for name in kept}


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(f"{float(value):.5g}")
