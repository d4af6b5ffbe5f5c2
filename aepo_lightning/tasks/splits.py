"""Questions in memory, cleaned and addressed by split and index; what tasks have in common that know all of theirs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Literal, get_args

from aepo_lightning.contracts.question import Objection, OnObjection, Question, Split
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.file_report import FileReport, total
from aepo_lightning.tasks.index import check_index

OnConflict = Literal["merge", "error"]
_MOST_NAMED = 5
"""Faulty rows that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was read from one file, or given as one list of rows."""

    name: str
    questions: Sequence[Question]
    """Without answers where none is given."""
    places: Sequence[str]
    """Of each question in the file, in words: `line 3`."""
    num_repaired: int = 0


@dataclass(slots=True)
class _Row:
    question: Question
    source: Source
    place: str

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.source.name}, {self.place}"


class QuestionSplits:
    """Training questions, shuffled anew in every epoch, and validation questions in file order."""

    def __init__(self, train: Sequence[Source], val: Sequence[Source], seed: int) -> None:
        """Take the questions as they are.

        Args:
            train: Sources of training.
            val: Sources of validation.
            seed: Of the order of the training questions.
        """
        self._sources = {"train": train, "val": val}
        self._rows = {split: _rows(sources) for split, sources in self._sources.items()}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._seed = seed

    def clean(self, on_conflict: OnConflict) -> None:
        """Drop rows without an answer; from training also duplicates and what validation asks.

        Two rows are duplicates if their whole prompts are the same. Validation keeps them, so that a benchmark keeps
        its published size. What validation asks is compared without system messages.

        Args:
            on_conflict: What happens to a prompt that comes again with other answers: `merge` accepts the answers of
                both, `error` refuses the files.

        Raises:
            DataError: If prompts come again with other answers and `on_conflict` is `error`.
        """
        self._rows["val"] = [row for row in self._rows["val"] if self._has_answers(row)]
        in_validation = {_conversation(row.question) for row in self._rows["val"]}
        kept: dict[object, _Row] = {}
        for row in self._rows["train"]:
            if not self._has_answers(row):
                continue
            if _conversation(row.question) in in_validation:
                self._count(row, "num_overlapping")
            elif (earlier := kept.setdefault(row.question.messages, row)) is not row:
                self._join(earlier, row, on_conflict)
        self._rows["train"] = list(kept.values())

    def _has_answers(self, row: _Row) -> bool:
        if not row.question.answers:
            self._count(row, "num_empty_answers")
        return bool(row.question.answers)

    def _join(self, earlier: _Row, row: _Row, on_conflict: OnConflict) -> None:
        """Drop a row whose prompt came before; the earlier one takes over what other answers it has."""
        known = earlier.question.answers
        others = tuple(answer for answer in row.question.answers if answer not in known)
        if others and on_conflict == "error":
            raise DataError(
                f"{row.where}: a prompt must have the same answers wherever it stands, but got {row.question.answers} "
                f"here and {known} in {earlier.where}. Correct one of them, or accept both by `on_conflict='merge'`."
            )
        earlier.question = replace(earlier.question, answers=known + others)
        self._count(row, "num_merged" if others else "num_duplicates")

    def _count(self, row: _Row, reason: str) -> None:
        self._counts[id(row.source), reason] += 1

    def sieve(self, look: Callable[[Question], Objection | None], reason: str, action: OnObjection) -> None:
        """Look through all questions that are left, and act on objections.

        Args:
            look: Says what is wrong with a question, and what would be left of it.
            reason: Name of the count in `FileReport` for rows of which nothing is left.
            action: `error` refuses them with file and place; `drop` keeps what the objection leaves of the question;
                `keep` takes the question as it is.

        Raises:
            DataError: If there are objections and `action` is `error`, or if nothing is left of a split.
        """
        found: list[str] = []
        for split, rows in self._rows.items():
            left = []
            for row in rows:
                objection = look(row.question)
                if objection is not None:
                    found.append(f"{row.where}: {objection.problem}")
                    if action == "drop" and not self._trim(row, objection, reason):
                        continue
                    if action == "keep":
                        self._count(row, f"{reason}_kept")
                left.append(row)
            self._rows[split] = left
        if found and action == "error":
            more = f"\n({len(found) - _MOST_NAMED} more)" if len(found) > _MOST_NAMED else ""
            raise DataError("\n".join(found[:_MOST_NAMED]) + more)
        self.refuse_nothing()

    def _trim(self, row: _Row, objection: Objection, reason: str) -> bool:
        """Leave of a row what an objection leaves; return whether that is anything."""
        if objection.rest is None:
            self._count(row, reason)
            return False
        row.question = objection.rest
        self._count(row, "num_trimmed")
        return True

    def refuse_nothing(self) -> None:
        """Refuse a split that has sources but no question.

        Raises:
            DataError: If nothing is left of one.
        """
        for split, setting in (("train", "path"), ("val", "val_path")):
            if self._sources[split] and not self._rows[split]:
                names = ", ".join(repr(source.name) for source in self._sources[split])
                counts = " ".join(str(report) for report in self._reports(split))
                raise DataError(f"`{setting}` must hold usable questions, but none of {names} is left. {counts}")

    def _reports(self, split: str) -> list[FileReport]:
        kept = Counter(id(row.source) for row in self._rows[split])
        return [
            FileReport(
                name=source.name,
                num_rows=len(source.questions),
                num_kept=kept[id(source)],
                num_repaired=source.num_repaired,
                **{reason: number for (owner, reason), number in self._counts.items() if owner == id(source)},
            )
            for source in self._sources[split]
        ]

    @property
    def reports(self) -> Mapping[Split, FileReport]:
        """What was read and dropped, for each split that has a source."""
        splits: tuple[Split, ...] = ("train", "val")
        return {split: total(self._reports(split)) for split in splits if self._sources[split]}

    def summary(self) -> list[str]:
        """Return one line for each file: rows, kept, dropped by reason."""
        return [str(report) for split in ("train", "val") for report in self._reports(split)]

    def num_questions(self, split: Split) -> int:
        """Return the size of a split."""
        return len(self._rows["val" if split == "val" else "train"])

    def question(self, split: Split, index: int) -> Question:
        """Return question `index`; training goes on in another order after each epoch, validation ends.

        Raises:
            IndexError: If the index is negative, beyond the end of validation, or if there are no training questions.
        """
        rows = self._rows["val" if split == "val" else "train"]
        has_end = split == "val" or not rows
        check_index(split, index, len(rows) if has_end else None)
        if split == "val":
            return rows[index].question
        epoch, position = divmod(index, len(rows))
        question = rows[_epoch_order(self._seed, epoch, len(rows))[position]].question
        if epoch == 0:
            return question
        # seeds derive from the id: the same id would repeat the random numbers of the earlier epoch
        return replace(question, question_id=f"{question.question_id}@{epoch}")


@dataclass(frozen=True, slots=True, eq=False)
class StoredQuestions:
    """The methods of a task whose questions are all known: what it adds is where they come from."""

    _splits: QuestionSplits = field(init=False, repr=False, compare=False)

    @property
    def reports(self) -> Mapping[Split, FileReport]:
        """What was read, repaired and dropped, for each split that has a file."""
        return self._splits.reports

    def summary(self) -> list[str]:
        """Return one line for each file: rows, kept, dropped by reason."""
        return self._splits.summary()

    def num_questions(self, split: Split) -> int | None:
        """Return the number of questions that are left of a split, hence the length of an epoch."""
        return self._splits.num_questions(split)

    def question(self, split: Split, index: int) -> Question:
        """Return question `index`; past the end of training another epoch begins in another order.

        Raises:
            IndexError: If the index is negative, beyond the end of validation, or if the split has no file.
        """
        return self._splits.question(split, index)

    def sieve(self, look: Callable[[Question], Objection | None], reason: str, action: OnObjection) -> None:
        """Look through all questions and act on objections; see `QuestionSplits.sieve`."""
        self._splits.sieve(look, reason, action)


def check_choices(on_conflict: str, on_bad_gold: str) -> None:
    """Refuse words that mean nothing.

    Raises:
        ConfigError: If one is none of its choices.
    """
    for name, value, choices in (
        ("on_conflict", on_conflict, get_args(OnConflict)),
        ("on_bad_gold", on_bad_gold, get_args(OnObjection)),
    ):
        if value not in choices:
            raise ConfigError(f"`{name}` must be one of {', '.join(choices)}, but got {value!r}.")


def _rows(sources: Sequence[Source]) -> list[_Row]:
    return [
        _Row(question, source, place)
        for source in sources
        for question, place in zip(source.questions, source.places, strict=True)
    ]


def _conversation(question: Question) -> tuple[object, ...]:
    """Return the messages without those of the system, unless there are no others."""
    return tuple(message for message in question.messages if message.role != "system") or question.messages


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """Return the order of the training questions in one epoch."""
    order = list(range(size))
    Random(f"epoch-order/{seed}/{epoch}").shuffle(order)
    return tuple(order)
