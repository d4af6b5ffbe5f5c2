"""The comparison with real runs, tiny ones: as `train.py` makes them, and after a kill."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.support.comparison.commands import words_of
from benchmarks.support.comparison.results import load
from benchmarks.support.comparison.settings import TRIAL, Bed, Job
from tests.support.commands import run_command
from tests.support.paths import ROOT
from tests.support.recording import is_measured

TINY = (
    "model.architecture.hidden_size=32",
    "coldstart.num_steps=4",
    "trainer.max_epochs=2",
    "data.questions_per_iteration=2",
    "experience.questions_per_step=1",
    "algorithm.budget=4",
    "data.num_val_questions=2",
    "evaluation.num_samples=2",
    "evaluation.pass_at=[1,2]",
    "trainer.check_val_every_n_epoch=1",
)


def compare(out, *words):
    """The command, in a real process, as it starts runs from what it has imported itself."""
    command = [sys.executable, "-m", "benchmarks.algorithms", "--out", str(out), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_algorithms_within_a_budget_are_those_of_train_py(tmp_path):
    bed = "quickstart"
    options = ["--beds", bed, "--algorithms", "aepo,grpo", "--seeds", "1", "--jobs", "1", "--budget", "600"]
    done = compare(tmp_path / "out", *options, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| C1 | AEPO consistently outperforms" in done.stdout
    found, num_damaged = load(tmp_path / "out/results.jsonl")
    assert num_damaged == 0
    assert {job.algorithm for job in found} == {"aepo", "grpo"}
    assert (tmp_path / f"out/comparison_{bed}.png").is_file()
    again = compare(tmp_path / "out", *options, *TINY)
    assert "2 of 2 runs are there." in again.stdout
    words = words_of(Job(bed, "aepo", 0), Bed(**{**fields_of(TRIAL[bed]), "words": (*TRIAL[bed].words, *TINY)}))
    plain = run_command("train.py", *words, f"run_dir={tmp_path / 'plain'}", timeout=600)
    assert plain.returncode == 0, plain.stderr
    with (tmp_path / "plain/curve.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "iteration"]
    record = found[Job(bed, "aepo", 0)]["iterations"]
    compared = [name for name in record if name != "step" and not is_measured(name)]
    assert len(compared) > 30
    for name in compared:
        expected = [None if row[name] == "" else float(f"{float(row[name]):.5g}") for row in rows]
        assert record[name] == expected, name


def fields_of(bed):
    return {name: getattr(bed, name) for name in ("experiment", "num_generated_tokens", "num_answered_calls")}


@pytest.mark.slow
def test_a_budget_that_is_used_up_starts_nothing_and_says_what_is_missing(tmp_path):
    done = compare(
        tmp_path / "out", "--beds", "quickstart", "--algorithms", "grpo", "--seeds", "1", "--budget", "0", *TINY
    )
    assert done.returncode == 1
    assert "The time is up: 1 runs are not made." in done.stdout
    assert "Not all runs are there. The same command goes on from here." in done.stderr
    assert not (tmp_path / "out/results.jsonl").exists()


@pytest.mark.slow
def test_a_table_is_made_of_committed_results_alone(tmp_path):
    shutil.copy(ROOT / "tests/support/compared.jsonl", tmp_path / "results.jsonl")
    done = compare(tmp_path / "out", "--table", str(tmp_path / "results.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "| C1 | AEPO consistently outperforms" in done.stdout
    text = (tmp_path / "out/table.md").read_text()
    for line in (ROOT / "tests/support/compared.jsonl").read_text().splitlines():
        assert f"| `{json.loads(line)['algorithm']}` |" in text


@pytest.mark.slow
def test_a_table_of_a_file_without_results_is_refused_and_touches_no_document(tmp_path):
    document = (ROOT / "docs/faithfulness.md").read_bytes()
    (tmp_path / "damaged.jsonl").write_text('{"bed": "burst"}\n')
    for name, said in (("nothing.jsonl", ""), ("damaged.jsonl", "1 damaged lines. They are left out.")):
        done = compare(tmp_path / "out", "--table", str(tmp_path / name), "--docs")
        assert done.returncode == 1
        assert f"{name} must hold results of runs, but has none. Name another file." in done.stderr
        assert said in done.stdout
    assert (ROOT / "docs/faithfulness.md").read_bytes() == document
