"""The file of an evaluation's results: opened or continued under a stamp, appended to, read."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from types import TracebackType
from typing import IO, Any

from aepo_lightning.atomic_files import replacing
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.results import (
    EvaluationStamp,
    Pair,
    TrajectoryResult,
    result_from_dict,
    result_to_dict,
    stamp_from_dict,
    stamp_to_dict,
)
from aepo_lightning.rollout.checked_lines import Line, open_to_append, read_lines, to_text

logger = logging.getLogger(__name__)

RESULTS = "results"
"""The folder, within that of an evaluation, that holds a file for each benchmark."""
_ENDING = ".jsonl"


def results_path(folder: Path, benchmark: str) -> Path:
    """Return where an evaluation keeps the results of a benchmark."""
    return folder / RESULTS / f"{benchmark}{_ENDING}"


def results_paths(folder: Path) -> list[Path]:
    """Return the files of results in the folder of an evaluation, in the order of their names."""
    return sorted((folder / RESULTS).glob(f"*{_ENDING}"))


class ResultsFile:
    """The results of one benchmark on the disk, while an evaluation adds to them.

    A context manager. One process at a time writes to a file; whoever opens it holds the folder of the evaluation.
    """

    def __init__(self, path: Path, stamp: EvaluationStamp, *, asks_again: bool = False) -> None:
        """Open a file, or begin it.

        A cut last line is dropped. Lines that are damaged are dropped too, and the file as it was is kept beside it
        under a name that ends in `.damaged-1`: their trajectories are missing and are made again.

        Args:
            path: Of the file. Its folder is made where it is not there.
            stamp: Of what will be added.
            asks_again: Drop trajectories whose verdict is not scored, so that they are missing and can be judged again.

        Raises:
            ConfigError: If the file has results under another stamp; the settings that differ are named.
            DataError: If it is no file of results.
            OSError: If it cannot be written.
        """
        self.path = path
        self.stamp = stamp
        self._pairs = self._take_over(asks_again)
        open_to_append(path).close()
        self._file: IO[bytes] = path.open("ab", buffering=0)
        if not self._file.tell():
            self._write({"stamp": stamp_to_dict(stamp)})

    def _take_over(self, asks_again: bool) -> set[Pair]:
        lines = list(read_lines(self.path))
        if not lines:
            return set()
        if differences := _stamp_of(self.path, lines[0]).differences(self.stamp):
            listing = "\n".join(f"  {each}" for each in differences)
            raise ConfigError(
                f"The results in {self.path} must go on under the settings that they began with, but these differ:\n"
                f"{listing}\nGive the saved values, or evaluate into another folder."
            )
        sound, pairs, problems = lines[:1], set[Pair](), list[str]()
        for line in lines[1:]:
            try:
                result = result_from_dict(line.load())
                pair = result.pair
                if pair in pairs:
                    raise DataError(f"question {pair[0]!r} has its sample {pair[1]} already.")
            except DataError as error:
                problems.append(f"line {line.number}: {error}")
                continue
            if result.verdict.is_scored or not asks_again:
                pairs.add(pair)
                sound.append(line)
        if problems:
            self._set_aside(problems)
        if len(sound) < len(lines):
            with replacing(self.path) as partial:
                partial.write_bytes(b"".join(line.content + b"\n" for line in sound))
        return pairs

    def _set_aside(self, problems: Sequence[str]) -> None:
        """Keep the file as it is under a name of its own, and say why."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        copyfile(self.path, aside)
        logger.warning(
            "%s: %d lines cannot be used and their trajectories are made again (%s). The file is kept as %s.",
            self.path,
            len(problems),
            "; ".join(problems[:3]),
            aside.name,
        )

    def append(self, result: TrajectoryResult) -> None:
        """Write one result. When this returns it outlives the process, however that ends.

        Raises:
            ValueError: If the file has the question's sample already, or the result is of another benchmark or a
                sample that the stamp does not allow.
            OSError: If it cannot be written; what was written before is whole.
        """
        if result.pair in self._pairs:
            raise ValueError(
                f"`result` must be new, but question {result.question_id!r} has its sample {result.sample} already. "
                "Make only what is `missing`."
            )
        if result.benchmark != self.stamp.benchmark or result.sample >= self.stamp.num_samples:
            raise ValueError(
                f"`result` must be one of {self.stamp.num_samples} samples of {self.stamp.benchmark!r}, but got sample "
                f"{result.sample} of {result.benchmark!r}. Write it to the file of its benchmark."
            )
        self._write(result_to_dict(result))
        self._pairs.add(result.pair)

    def _write(self, plain: dict[str, Any]) -> None:
        end, left = self._file.tell(), memoryview(to_text(plain).encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException:
            self._file.truncate(end)  # a part of a line would spoil the next one
            raise

    @property
    def pairs(self) -> frozenset[Pair]:
        """What is there: questions and samples."""
        return frozenset(self._pairs)

    def missing(self, question_ids: Sequence[str], num_samples: int | None = None) -> list[Pair]:
        """Return what is still to be made, question by question in the order given.

        Args:
            question_ids: What the evaluation asks.
            num_samples: Of each question. Default: as in the stamp.
        """
        number = self.stamp.num_samples if num_samples is None else num_samples
        return [(each, i) for each in question_ids for i in range(number) if (each, i) not in self._pairs]

    def close(self) -> None:
        """Wait until everything is on the disk, and let go of the file. A second call does nothing."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResults:
    """What a file of results holds."""

    path: Path
    stamp: EvaluationStamp
    results: tuple[TrajectoryResult, ...]
    """In the order of the file, which is that in which they were finished."""

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return self.stamp.benchmark


def read_results(path: Path) -> BenchmarkResults:
    """Read a file of results. A cut last line is not there.

    Raises:
        DataError: If it is no file of results, or a line is damaged; file and line are named.
    """
    lines = read_lines(path)
    stamp = _first_stamp(path, lines)
    if stamp is None:
        raise DataError(f"{path} must begin with the stamp of an evaluation, but has no whole line. Evaluate again.")
    return BenchmarkResults(path=path, stamp=stamp, results=tuple(_results(path, lines)))


def read_stamp(path: Path) -> EvaluationStamp | None:
    """Read the stamp of a file of results; None where the file has no whole line.

    Raises:
        DataError: If it is no file of results.
    """
    return _first_stamp(path, read_lines(path))


def _first_stamp(path: Path, lines: Iterator[Line]) -> EvaluationStamp | None:
    first = next(lines, None)
    return None if first is None else _stamp_of(path, first)


def _results(path: Path, lines: Iterator[Line]) -> Iterator[TrajectoryResult]:
    seen: set[Pair] = set()
    for line in lines:
        try:
            result = result_from_dict(line.load())
            if result.pair in seen:
                raise DataError(f"question {result.question_id!r} has its sample {result.sample} already.")
        except DataError as error:
            raise DataError(
                f"{path}, line {line.number}: {error} Continue the evaluation: it makes again what cannot be read."
            ) from error
        seen.add(result.pair)
        yield result


def read_evaluation(folder: Path) -> list[BenchmarkResults]:
    """Read the results of every benchmark in the folder of an evaluation, in the order of their names.

    Raises:
        DataError: If it is not the folder of an evaluation, or a file of it cannot be read.
    """
    paths = results_paths(folder)
    if not paths:
        found = "has no such file" if folder.is_dir() else "is no folder"
        raise DataError(
            f"The folder of an evaluation must hold {RESULTS}/<benchmark>{_ENDING}, but {folder} {found}. Give the "
            "folder that aepo-eval wrote to."
        )
    return [read_results(path) for path in paths]


def _stamp_of(path: Path, line: Line) -> EvaluationStamp:
    try:
        plain = line.load()
        if not isinstance(plain.get("stamp"), dict):
            raise DataError("the first line must hold a stamp.")
        return stamp_from_dict(plain["stamp"])
    except DataError as error:
        raise DataError(
            f"{path}, line 1: {error} It is no file of results, or its beginning is damaged: move it away to begin it "
            "anew."
        ) from error
