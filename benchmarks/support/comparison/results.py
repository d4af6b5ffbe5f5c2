"""The results file of a comparison: one JSON line for each run that ended, which a crash cannot spoil."""

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.support.comparison.runs import Record
from benchmarks.support.comparison.settings import Job

DONE, FAILED = "done", "failed"
_NEEDED = ("bed", "algorithm", "seed", "status", "configuration", "code", "budgets")
_OF_DONE = ("iterations", "held_out")


def load(path: Path) -> tuple[dict[Job, Record], int]:
    """Return the newest result of each run, and the number of lines that are damaged.

    A line is damaged if it is no whole JSON object with what a result has; the run behind it counts as not made.

    Args:
        path: Of lines, compressed if it ends in `.gz`. A file that is not there has none.
    """
    if not path.exists():
        return {}, 0
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).split(b"\n")
    found: dict[Job, Record] = {}
    num_damaged = 0
    for line in lines:
        if not line.strip():
            continue
        record = _parse(line)
        if record is None:
            num_damaged += 1
        else:
            found[job_of(record)] = record
    return found, num_damaged


def job_of(record: Record) -> Job:
    """Return which run a result is of."""
    return Job(str(record["bed"]), str(record["algorithm"]), int(record["seed"]))


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or any(name not in record for name in _NEEDED):
        return None
    if record["status"] == DONE and any(not isinstance(record.get(name), dict) for name in _OF_DONE):
        return None
    return record


def append(path: Path, record: Record) -> None:
    """Add a result in one write that is on the disk when this returns. A partial last line stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_partial = False
        if size:
            file.seek(size - 1)
            is_partial = file.read(1) != b"\n"
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        file.write(b"\n" + line if is_partial else line)
        os.fsync(file.fileno())


def write_compact(path: Path, records: Iterable[Record], columns: Mapping[str, Iterable[str]]) -> None:
    """Write runs, compressed, with the columns that a table and its figures are made of.

    Of a run that failed only that it did is kept, so that a table made of the file counts it.

    Args:
        path: Ends in `.gz`. The same records give the same bytes.
        records: Of runs.
        columns: Names to keep of `iterations` and of `held_out`.
    """
    lines = []
    for record in sorted(records, key=job_of):
        kept = {name: record[name] for name in _NEEDED}
        if record["status"] == DONE:
            chosen = {part: {n: record[part][n] for n in names if n in record[part]} for part, names in columns.items()}
            kept = {**record, **chosen}
        lines.append(json.dumps(kept, separators=(",", ":")))
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
