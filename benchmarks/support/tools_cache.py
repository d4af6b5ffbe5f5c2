"""The cache of answers: four processes on one file, killed writers, and the released code's JSON file beside it.

The other side keeps all answers in one JSON file, as the released code does: for every new answer it reads the file
under a lock, adds the answer and writes the whole file again.
"""

import fcntl
import json
import os
import resource
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.tools import SQLiteCache
from benchmarks.support.parts import Part
from benchmarks.support.tools_parts import Words, percentile_ms

NUM_PROCESSES = 4
NUM_TEXTS = 500
WORDS_PER_TEXT = 250
"""1.6 kB, the mean of the released search cache."""
_FORK = get_context("fork")


def measure(num_sets: int = 5_000, num_gets: int = 20_000, num_kills: int = 10, json_entries: int = 10_000) -> Part:
    """Measure both sides.

    Args:
        num_sets: Answers that each process keeps.
        num_gets: Answers that each process asks for.
        num_kills: Writers that are killed.
        json_entries: Answers in the JSON file.
    """
    words = Words()
    texts = [words.text(WORDS_PER_TEXT) for _ in range(NUM_TEXTS)]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "cache.sqlite"
        sets_s, sets_cpu_s = _side_by_side(lambda worker: _set_all(file, texts, worker, num_sets))
        gets_s, gets_cpu_s = _side_by_side(lambda worker: _get_all(file, texts, worker, num_sets, num_gets))
        json_ms = percentile_ms(_json_sets(Path(name) / "cache.json", texts, json_entries), 0.5)
        kills = _kill_writers(Path(name) / "killed.sqlite", texts, num_kills)
    sets = round(NUM_PROCESSES * num_sets / sets_s)
    gets = round(NUM_PROCESSES * num_gets / gets_s)
    figures = {
        "sets_per_s": sets,
        "gets_per_s": gets,
        "set_cpu_us": round(1e6 * sets_cpu_s / (NUM_PROCESSES * num_sets), 1),
        "get_cpu_us": round(1e6 * gets_cpu_s / (NUM_PROCESSES * num_gets), 1),
        "json_file_sets_per_s": round(1e3 / json_ms, 1),
        "json_file_entries": json_entries,
        "sets_ratio": round(sets * json_ms / 1e3),
        **kills,
    }
    goals = {
        "cache_sets_per_s": (sets, ">=", 5_000.0),
        "cache_gets_per_s": (gets, ">=", 30_000.0),
        "cache_lost_by_kills": (kills["answers_lost"], "<=", 0.0),
    }
    return Part(figures=figures, goals=goals)


def _side_by_side(work: Callable[[int], None]) -> tuple[float, float]:
    """Let several processes do the same work; return wall seconds from their common start, and processor seconds."""
    cpu = _cpu_of_children()
    barrier = _FORK.Barrier(NUM_PROCESSES + 1)

    def run(worker: int) -> None:
        barrier.wait()
        work(worker)

    processes = [_FORK.Process(target=run, args=(worker,)) for worker in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes), "a process of the benchmark failed"
    return time.perf_counter() - started, _cpu_of_children() - cpu


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _key(worker: int, index: int) -> str:
    return f"{worker:016x}{index:016x}"


def _answer(texts: list[str], index: int) -> ToolResult:
    return ToolResult(status=ToolStatus.OK, text=f"{index} {texts[index % len(texts)]}")


def _set_all(file: Path, texts: list[str], worker: int, num_sets: int) -> None:
    cache = SQLiteCache(file)
    for index in range(num_sets):
        cache.put(_key(worker, index), "search", _answer(texts, index), None)
    cache.close()


def _get_all(file: Path, texts: list[str], worker: int, num_sets: int, num_gets: int) -> None:
    cache, random = SQLiteCache(file), Random(worker)
    for _ in range(num_gets):
        index = random.randrange(num_sets)
        found = cache.get(_key(random.randrange(NUM_PROCESSES), index))
        assert found is not None, "an answer that was kept must be found"
        assert found.text.startswith(f"{index} {texts[index % len(texts)][:8]}")
    cache.close()


def _json_sets(file: Path, texts: list[str], num_entries: int) -> list[float]:
    file.write_text(json.dumps({_key(0, index): _answer(texts, index).text for index in range(num_entries)}))
    times = []
    for index in range(5):
        started = time.perf_counter()
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries: dict[str, Any] = json.loads(file.read_text())
            entries[_key(1, index)] = texts[index]
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(entries))
            partial.replace(file)
        times.append(time.perf_counter() - started)
    return times


def _kill_writers(file: Path, texts: list[str], num_kills: int) -> dict[str, int]:
    """Kill writers in the middle of their work; count what they had said to be in the file and is not."""
    random, promised = Random(0), []
    for round_number in range(num_kills):
        receiver, sender = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=_write_on, args=(file, texts, round_number, sender))
        process.start()
        sender.close()
        time.sleep(0.2 + 0.3 * random.random())
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        promised.append(_last(receiver))
    cache = SQLiteCache(file)
    lost = sum(cache.get(_key(n, index)) is None for n, count in enumerate(promised) for index in range(count))
    cache.close()
    connection = sqlite3.connect(file)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return {
        "writers_killed": num_kills,
        "answers_kept_before_kills": sum(promised),
        "answers_lost": lost + (verdict != "ok"),
    }


def _write_on(file: Path, texts: list[str], worker: int, sender: Connection) -> None:
    cache = SQLiteCache(file)
    for index in range(1_000_000):
        cache.put(_key(worker, index), "search", _answer(texts, index), None)
        if index % 20 == 19:  # between flushes, the writing thread is at work when the signal comes
            cache.flush()
            sender.send(index + 1)


def _last(receiver: Connection) -> int:
    count = 0
    try:
        while receiver.poll():
            count = receiver.recv()
    except EOFError:
        pass
    return count
