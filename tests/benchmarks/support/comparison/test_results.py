"""The results file after whatever may happen to it."""

import json

import pytest

from benchmarks.support.comparison.results import append, job_of, load, write_compact
from benchmarks.support.comparison.settings import Job


def record(algorithm="aepo", seed=0, **changes):
    whole = {"bed": "bed", "algorithm": algorithm, "seed": seed, "status": "done", "configuration": "c", "code": "d"}
    whole |= {"budgets": {"tokens": 10, "calls": 1}}
    return whole | {"iterations": {"step": [0], "a": [1.0]}, "held_out": {"step": [0]}} | changes


def test_a_result_comes_back(tmp_path):
    append(tmp_path / "out" / "results.jsonl", record())
    append(tmp_path / "out" / "results.jsonl", record(seed=1))
    found, num_damaged = load(tmp_path / "out" / "results.jsonl")
    assert found == {Job("bed", "aepo", 0): record(), Job("bed", "aepo", 1): record(seed=1)}
    assert num_damaged == 0
    assert load(tmp_path / "nothing.jsonl") == ({}, 0)


def test_the_newest_result_of_a_run_counts(tmp_path):
    for status in ("failed", "done"):
        append(tmp_path / "r", record(status=status))
    assert load(tmp_path / "r")[0][job_of(record())]["status"] == "done"


@pytest.mark.parametrize("end", [1, 10, 60, -1])
def test_a_partial_last_line_costs_its_own_run_only(tmp_path, end):
    path = tmp_path / "results.jsonl"
    append(path, record(seed=0))
    line = json.dumps(record(seed=1)).encode()
    with path.open("ab") as file:
        file.write(line[:end])
    append(path, record(seed=2))
    found, num_damaged = load(path)
    assert {job.seed for job in found} == {0, 2}
    assert num_damaged == 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"[1, 2]", id="no object"),
        pytest.param(b'{"bed": "bed", "algorithm": "aepo"}', id="keys are missing"),
        pytest.param(json.dumps(record(iterations=None)).encode(), id="no curve"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(json.dumps(record()).encode()[:-30], id="cut off"),
    ],
)
def test_a_damaged_line_is_left_out_and_counted(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line + b"\n\n" + json.dumps(record(seed=1)).encode() + b"\n")
    found, num_damaged = load(path)
    assert {job.seed for job in found} == {1}
    assert num_damaged == 1


def test_separators_within_text_do_not_end_a_line(tmp_path):
    text = "a\u2028b\u0085c"
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps(record(problem=text), ensure_ascii=False).encode() + b"\n")
    assert load(path)[0][job_of(record())]["problem"] == text


def test_compact_results_have_chosen_columns_and_the_failed_runs_and_the_same_bytes_every_time(tmp_path):
    records = [record(seed=1), record(seed=0, status="failed", problem="/home/me/x"), record("grpo")]
    for name, order in (("one.gz", records), ("two.gz", records[::-1])):
        write_compact(tmp_path / name, order, {"iterations": ("step", "b"), "held_out": ("step",)})
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    found, num_damaged = load(tmp_path / "one.gz")
    assert [*found] == [Job("bed", "aepo", 0), Job("bed", "aepo", 1), Job("bed", "grpo", 0)]
    failed = found[Job("bed", "aepo", 0)]
    assert failed["status"] == "failed", "a table of the file counts it"
    assert "problem" not in failed
    assert found[Job("bed", "grpo", 0)]["iterations"] == {"step": [0]}
    assert num_damaged == 0
