"""Files of finished trees, and of the steps of trees that are still growing.

One JSON object per line, append-only. A tree is written as soon as its last leaf is scored. Until all trees of a
rollout are there, every generation, tool result and branch decision stands in a second file, written as soon as it is
over: a crash loses only what chains were in the middle of. The last line of a file may be cut: reading skips it, and
the next line takes its place.
"""

import json
import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import DataError
from aepo_lightning.rollout.plain import tree_from_dict, tree_to_dict
from aepo_lightning.rollout.record import Event, EventSink, GroupRecord, read_events

logger = logging.getLogger(__name__)


class RolloutJournal:
    """Keeps trees in one file per rollout below `directory`."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def path(self, name: str) -> Path:
        """Return the file that holds the trees of `name`, such as `train-00012`."""
        return self._directory / f"{name}.jsonl"

    def steps_path(self, name: str) -> Path:
        """Return the file that holds the steps of `name` while its trees grow."""
        return self._directory / f"{name}.steps.jsonl"

    def append(self, name: str, tree: RolloutTree) -> None:
        """Write one finished tree."""
        with _open_to_append(self.path(name)) as file:
            _write_line(file, tree_to_dict(tree))

    def read(self, name: str) -> Iterator[RolloutTree]:
        """Yield the stored trees of `name`, in the order in which they were finished.

        Raises:
            DataError: If a line other than a cut last one cannot be read; file and line are named.
        """
        path = self.path(name)
        for number, plain in _read_lines(path):
            try:
                yield tree_from_dict(plain)
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error

    def open(self, name: str, seed: int, stamp: str) -> "JournalSession":
        """Begin or continue a rollout.

        Args:
            name: Of the rollout.
            seed: Of the rollout.
            stamp: Names weights and settings. What was written under another seed or stamp is moved aside.

        Raises:
            DataError: If a file cannot be read; file and line are named.
        """
        trees = list(self.read(name))
        if any((tree.seed, tree.stamp) != (seed, stamp) for tree in trees):
            _move_aside(self.path(name))
            trees = []
        steps_path, header = self.steps_path(name), {"seed": seed, "stamp": stamp}
        lines = list(_read_lines(steps_path))
        if lines and lines[0][1] != header:
            _move_aside(steps_path)
            lines = []
        session = JournalSession(
            journal=self,
            name=name,
            stamp=stamp,
            trees={tree.question.question_id: tree for tree in trees},
            records=_group_records(steps_path, lines[1:]),
            file=_open_to_append(steps_path),
        )
        if not lines:
            _write_line(session.file, header)
        return session


@dataclass(kw_only=True)
class JournalSession:
    """A rollout in progress: what is on file already, and where the rest goes. Use as a context manager."""

    journal: RolloutJournal
    name: str
    stamp: str
    trees: dict[str, RolloutTree]
    """Finished trees by question id."""
    records: dict[str, GroupRecord]
    """Steps of unfinished trees by question id."""
    file: IO[str]
    is_complete: bool = field(default=False)

    def sink(self, question_id: str) -> EventSink:
        """Return what writes the steps of one question."""

        def write(event: Event) -> None:
            _write_line(self.file, {"question": question_id, **event})

        return write

    def add(self, tree: RolloutTree) -> None:
        """Write one finished tree."""
        self.journal.append(self.name, tree)

    def __enter__(self) -> "JournalSession":
        """Return the session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file of steps; a complete rollout needs it no more."""
        self.file.close()
        if self.is_complete:
            self.journal.steps_path(self.name).unlink()


def _group_records(path: Path, lines: list[tuple[int, Event]]) -> dict[str, GroupRecord]:
    events: dict[str, list[Event]] = defaultdict(list)
    try:
        for _, line in lines:
            events[line.pop("question")].append(line)
        return {question_id: read_events(found) for question_id, found in events.items()}
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError(f"{path}: a step must have the fields of its kind, but: {error!r}. Remove the file.") from error


def _open_to_append(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_cut_line(path)
    return path.open("a", encoding="utf-8")


def _write_line(file: IO[str], plain: dict[str, Any]) -> None:
    file.write(json.dumps(plain, separators=(",", ":")) + "\n")
    file.flush()  # what the operating system has, the end of this process cannot take away


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each whole line."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            return
        try:
            plain = json.loads(line)
        except ValueError as error:  # not UTF-8 or not JSON
            raise DataError(f"{path}, line {number}: {error}") from error
        if not isinstance(plain, dict):
            raise DataError(f"{path}, line {number}: a line must be a JSON object, but got {plain!r:.80}.")
        yield number, plain


def _move_aside(path: Path) -> None:
    """Keep what was written under other weights or settings, under a name of its own."""
    number = 1
    while (target := path.with_name(f"{path.name}.superseded-{number}")).exists():
        number += 1
    path.rename(target)
    logger.info("%s was written with other weights or settings; it is kept as %s.", path, target.name)


def _remove_cut_line(path: Path) -> None:
    """Cut a file back to its last whole line: what a killed run left behind would spoil the next line."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
