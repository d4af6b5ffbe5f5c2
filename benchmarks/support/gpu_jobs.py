"""Commands that `benchmarks.gpu` runs: the tests marked `gpu`, the main job, the search task of a pretrained model."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from time import perf_counter
from xml.etree import ElementTree

from benchmarks.support.gpu_case import CaseReport, Setting

ROOT = Path(__file__).resolve().parents[2]
MARK = "mark.gpu"
MAIN_JOB_EPOCHS = 4
"""Iterations of the main job that are timed."""
TO_KEEP_S = 4.0
"""Of the time of a case, for keeping what a command has left."""
START_AND_END_S = 35.0
"""Of the time of a run, for what its own limit does not count: imports, the first compilation, the report."""
METRICS = ("reward", "entropy", "num_tool_calls", "format_error_fraction", "truncated_fraction", "tokens_per_s")
CURVES = ("curve.csv", "curve.png", "entropy.png", "report.json")
"""Files of a run folder that come back."""


def run_tests(setting: Setting, report: CaseReport) -> None:
    """Run the tests that need a CUDA device, or their code on a CPU."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text("utf-8")]
    results = setting.out / "gpu_tests.xml"
    options = ["-q", "-m", "gpu", "--gpu-device", setting.device, "-W", "default", "--durations=5"]
    options += ["--timeout=60", "--continue-on-collection-errors", "-p", "no:cacheprovider", f"--junitxml={results}"]
    start = perf_counter()
    status = _run([sys.executable, "-m", "pytest", *options, *files], setting.limit_s - TO_KEEP_S)
    report.add({"exit_status": status, "wall_s": round(perf_counter() - start, 1)})
    found = _test_figures(results)
    report.add(
        found,
        {"tests that failed": (float(len(found["failed"])), "<=", 0.0)},  # type: ignore[arg-type]
    )
    results.unlink()


def _test_figures(results: Path) -> dict[str, object]:
    """Return how many tests passed, and what the others said."""
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    failed = {}
    for case in cases:
        for kind in ("failure", "error"):
            for problem in case.findall(kind):
                failed[f"{case.get('classname')}::{case.get('name')}"] = str(problem.get("message"))[:600]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def run_main_job(setting: Setting, report: CaseReport, device: str) -> None:
    """Time the main job of the README, shortened, on the GPU or on the machine's processor."""
    device = "cpu" if setting.is_dry else device
    words = [
        f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
        f"engine.device={device}",
        f"trainer.max_epochs={1 if setting.is_dry else MAIN_JOB_EPOCHS}",
    ]
    if setting.is_dry:
        words += ["coldstart.num_steps=2", "data.questions_per_iteration=8", "data.num_val_questions=4"]
        words += ["algorithm.budget=4"]
    _train(setting, report, words)


def run_search(setting: Setting, report: CaseReport) -> None:
    """Train SmolLM2 on the search task within the time of the case, and bring its curve back; dry, only compose it."""
    words = ["+experiment=smollm2_search", f"time_limit_s={max(setting.limit_s - START_AND_END_S, 1):.0f}"]
    if not setting.is_dry:
        _train(setting, report, words, setting.out / "smollm2_search")
        return
    status = _run([sys.executable, "train.py", *words, "--cfg", "job"], setting.limit_s)
    report.add({"exit_status": status})
    if status:
        raise RuntimeError(f"`train.py --cfg job` must end with status 0, but got {status}. Its last lines say why.")


def _train(setting: Setting, report: CaseReport, words: Sequence[str], kept: Path | None = None) -> None:
    """Run `train.py` in a folder of its own, report its figures and keep its curves."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        start = perf_counter()
        status = _run([sys.executable, "train.py", f"run_dir={folder}", *words], setting.limit_s - TO_KEEP_S)
        report.add({"exit_status": status, "wall_s": round(perf_counter() - start, 1)})
        if kept is not None:
            _keep_curves(folder, kept)
        if status:
            raise RuntimeError(f"train.py must end with status 0, but got {status}. Its last lines say why.")
        found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report.add({stage: _chosen(found[stage]) for stage in ("seconds", "before", "training", "after")})


def _keep_curves(folder: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in CURVES for path in folder.rglob(pattern)):
        copy(path, kept / path.name)


def _chosen(values: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that a table of runs would show, and the times of all stages."""
    return {
        name: float(f"{value:.4g}")
        for name, value in values.items()
        if "/" not in name or name.rpartition("/")[2] in METRICS or "/pass@" in name
    }


def _run(command: Sequence[str], limit_s: float) -> int | str:
    """Run a command whose output goes where this process's goes, and return its exit status."""
    try:
        return subprocess.run(command, cwd=ROOT, check=False, timeout=max(limit_s, 1.0)).returncode
    except subprocess.TimeoutExpired:
        return "out of time"
