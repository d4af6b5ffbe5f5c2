"""Files of finished trees, and of the steps of trees that are still growing.

A tree is written as soon as its last leaf is scored. Until all trees of a rollout are there, every generation, tool
result and branch decision stands in a second file, written as soon as it is over: a crash loses only what chains were
in the middle of. Files are appended to, a line at a time (`checked_lines.py`). A run that goes on takes what is sound,
makes the rest again, and keeps a damaged file beside it. At the end the trees stand in the order of their questions.
"""

import logging
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from aepo_lightning.atomic_files import replacing
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.errors import DataError
from aepo_lightning.rollout.checked_lines import Line, open_to_append, read_lines, to_text
from aepo_lightning.rollout.plain import fields_of, tree_from_dict, tree_to_dict
from aepo_lightning.rollout.record import Event, EventSink, GroupRecord, read_events
from aepo_lightning.rollout.times import add_times, times_of, times_path

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OTHERS = "the others are of other weights, settings or questions, or a part of what has to be whole"


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
        """Write one finished tree, and beside it when its steps happened."""
        with open_to_append(self.path(name)) as file:
            _write_line(file, tree_to_dict(tree))
        if any(segment.span_s is not None for segment in tree.segments):
            with open_to_append(times_path(self._directory, name)) as file:
                _write_line(file, times_of(tree))

    def read_timed(self, name: str) -> list[RolloutTree]:
        """Return the trees of `name` that are not damaged, each segment with its time where that is on file."""
        trees = self.read_sound(name)
        add_times(trees, times_path(self._directory, name))
        return trees

    def read(self, name: str) -> Iterator[RolloutTree]:
        """Yield the stored trees of `name`, in the order of the file.

        Raises:
            DataError: If a line other than a cut last one is damaged; file and line are named.
        """
        path = self.path(name)
        for line in read_lines(path):
            try:
                yield tree_from_dict(line.load(needs_checksum=False))
            except DataError as error:
                raise DataError(f"{path}, line {line.number}: {error}") from error

    def read_sound(self, name: str) -> list[RolloutTree]:
        """Return the trees of `name` that are not damaged; what is lost is logged."""
        reading = _Reading(self.path(name))
        trees = [tree for _, tree in reading.each(_to_tree)]
        for problem in reading.problems:
            logger.warning("%s, %s", self.path(name), problem)
        return trees

    def open(
        self, name: str, seed: int, stamp: str, digests: Mapping[str, str] | None = None, *, whole_only: bool = False
    ) -> "JournalSession":
        """Begin or continue a rollout.

        What is damaged, or was written of something else, is kept in a file beside it and not taken over.

        Args:
            name: Of the rollout.
            seed: Of the rollout.
            stamp: Names weights and settings.
            digests: Of each question by its id, in order: they name what is asked. None compares none.
            whole_only: Take nothing over unless all trees are there.
        """
        digests = digests or {}
        trees = self._take_trees(name, seed, stamp, digests, whole_only)
        is_part = whole_only and not trees
        steps = self._take_steps(name, {"seed": seed, "stamp": stamp}, digests, is_part)
        session = JournalSession(
            journal=self,
            name=name,
            stamp=stamp,
            digests=digests,
            trees=trees,
            records={question_id: each.record for question_id, each in steps.items()},
            file=open_to_append(self.steps_path(name)),
        )
        session.written += trees
        session.num_steps |= {question_id: len(each.lines) for question_id, each in steps.items()}
        if not self.steps_path(name).stat().st_size:  # new, or a crash left it before its first line was whole
            _write_line(session.file, {"seed": seed, "stamp": stamp})
        return session

    def _take_trees(
        self, name: str, seed: int, stamp: str, digests: Mapping[str, str], whole_only: bool
    ) -> dict[str, RolloutTree]:
        reading = _Reading(self.path(name))
        kept = [
            (line, tree)
            for line, tree in reading.each(_to_tree)
            if (tree.seed, tree.stamp) == (seed, stamp)
            and _is_same(digests, tree.question.question_id, tree.question_digest)
        ]
        if whole_only and not digests.keys() <= {tree.question.question_id for _, tree in kept}:
            kept = []
        reading.keep([line for line, _ in kept])
        return {tree.question.question_id: tree for _, tree in kept}

    def _take_steps(self, name: str, header: Event, digests: Mapping[str, str], is_part: bool) -> dict[str, "_Steps"]:
        reading = _Reading(self.steps_path(name))
        found = list(reading.each(Line.load))
        if is_part or not found or found[0][1] != header:
            reading.keep([])
            return {}
        steps: dict[str, _Steps] = defaultdict(_Steps)
        for line, event in found[1:]:
            steps[str(event.pop("question", None))].add(line, event)
        sound = {question: each for question, each in steps.items() if each.read(digests.get(question))}
        lines = [found[0][0], *(line for each in sound.values() for line in each.lines)]
        reading.keep(sorted(lines, key=lambda line: line.number))
        return sound


@dataclass(kw_only=True)
class JournalSession:
    """A rollout in progress: what is on file already, and where the rest goes. Use as a context manager."""

    journal: RolloutJournal
    name: str
    stamp: str
    digests: Mapping[str, str]
    """Of the questions by id, in order."""
    trees: dict[str, RolloutTree]
    """Finished trees by question id."""
    records: dict[str, GroupRecord]
    """Steps of unfinished trees by question id."""
    file: IO[str]
    is_complete: bool = field(default=False)
    written: list[str] = field(default_factory=list)
    """Questions whose trees are on file, in the order of the file."""
    num_steps: dict[str, int] = field(default_factory=dict)
    """Lines of each question in the file of steps."""

    def sink(self, question: Question) -> EventSink:
        """Return what writes the steps of one question.

        They are numbered, and the first line names what is asked: a line that is lost leaves a gap.
        """
        question_id = question.question_id

        def write(event: Event) -> None:
            if question_id not in self.num_steps:
                messages = [fields_of(message) for message in question.messages]
                write_numbered({"digest": self.digests.get(question_id, ""), "messages": messages})
            write_numbered(event)

        def write_numbered(event: Event) -> None:
            number = self.num_steps.get(question_id, 0)
            _write_line(self.file, {"question": question_id, "number": number, **event})
            self.num_steps[question_id] = number + 1

        return write

    def add(self, tree: RolloutTree) -> None:
        """Write one finished tree, and with it what names the weights, the settings and the question."""
        tree.stamp, tree.question_digest = self.stamp, self.digests.get(tree.question.question_id, "")
        self.journal.append(self.name, tree)
        self.written.append(tree.question.question_id)

    def __enter__(self) -> "JournalSession":
        """Return the session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file of steps; a complete rollout needs it no more, and has its trees in order."""
        self.file.close()
        if self.is_complete:
            self._put_in_order()
            self.journal.steps_path(self.name).unlink()

    def _put_in_order(self) -> None:
        places = {question_id: place for place, question_id in enumerate(self.digests)}
        order = sorted(range(len(self.written)), key=lambda index: places.get(self.written[index], len(places)))
        if order != sorted(order):
            lines = list(read_lines(self.journal.path(self.name)))
            _rewrite(self.journal.path(self.name), [lines[index] for index in order])


class _Reading:
    """One pass over a file, and what becomes of it if not all of it is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_lines = 0
        self.problems: list[str] = []
        """What is damaged, with the numbers of the lines."""

    def each(self, parse: Callable[[Line], T]) -> Iterator[tuple[Line, T]]:
        """Yield the lines that are sound and what they say."""
        for line in read_lines(self._path):
            self._num_lines += 1
            try:
                found = parse(line)
            except DataError as error:
                self.problems.append(f"line {line.number}: {error}")
                continue
            yield line, found

    def keep(self, lines: Sequence[Line]) -> None:
        """Leave only some lines in the file; if others were there, the whole file stays under a name of its own."""
        if len(lines) == self._num_lines:
            return
        number, ending = 1, "damaged" if self.problems else "superseded"
        while (aside := self._path.with_name(f"{self._path.name}.{ending}-{number}")).exists():
            number += 1
        self._path.rename(aside)
        if lines:
            _rewrite(self._path, lines)
        reason = "; ".join(self.problems[:3]) or _OTHERS
        logger.log(
            logging.WARNING if self.problems else logging.INFO,
            "%s: %d of %d lines are taken over and what the others said is made again (%s). The file is kept as %s.",
            self._path,
            len(lines),
            self._num_lines,
            reason,
            aside.name,
        )


@dataclass(slots=True)
class _Steps:
    """The steps of one question: those up to the first that is missing, a state in which a crash could have left it."""

    lines: list[Line] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    record: GroupRecord = field(default_factory=GroupRecord)
    _has_gap: bool = False

    def add(self, line: Line, event: Event) -> None:
        """Take the next line of the file."""
        self._has_gap = self._has_gap or event.pop("number", None) != len(self.lines)
        if not self._has_gap:
            self.lines.append(line)
            self.events.append(event)

    def read(self, digest: str | None) -> bool:
        """Make a record of the steps; return whether there are any, of the question with this digest.

        Args:
            digest: None takes any.
        """
        if not self.lines or digest not in (None, self.events[0].get("digest")):
            return False
        try:
            self.record = read_events(self.events[1:])
        except (KeyError, TypeError, ValueError, struct.error):  # of another version of this library
            return False
        return True


def _to_tree(line: Line) -> RolloutTree:
    return tree_from_dict(line.load())


def _is_same(digests: Mapping[str, str], question_id: str, digest: str) -> bool:
    """Return whether a tree is of the question that is asked under its id; of a question that is not asked, it is."""
    return digests.get(question_id, digest) == digest


def _write_line(file: IO[str], plain: dict[str, Any]) -> None:
    file.write(to_text(plain))
    file.flush()  # what the operating system has, the end of this process cannot take away


def _rewrite(path: Path, lines: Sequence[Line]) -> None:
    with replacing(path) as partial:
        partial.write_bytes(b"".join(line.content + b"\n" for line in lines))
