"""Questions in memory, cleaned and addressed by split and index; what the readers of files have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from aepo_lightning.contracts.question import Question, Split
from aepo_lightning.errors import DataError
from aepo_lightning.tasks.file_report import FileReport
from aepo_lightning.tasks.index import check_index


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSplits:
    """Training questions, shuffled anew in every epoch, and validation questions in file order."""

    train: tuple[Question, ...]
    val: tuple[Question, ...]
    seed: int
    reports: dict[Split, FileReport]

    def num_questions(self, split: Split) -> int:
        """Return the size of a split."""
        return len(self.val if split == "val" else self.train)

    def question(self, split: Split, index: int) -> Question:
        """Return question `index`; training goes on in another order after each epoch, validation ends.

        Raises:
            IndexError: If the index is negative, beyond the end of validation, or if there are no training questions.
        """
        has_end = split == "val" or not self.train
        check_index(split, index, self.num_questions(split) if has_end else None)
        if split == "val":
            return self.val[index]
        epoch, position = divmod(index, len(self.train))
        question = self.train[_epoch_order(self.seed, epoch, len(self.train))[position]]
        if epoch == 0:
            return question
        # seeds derive from the id: the same id would repeat the random numbers of the earlier epoch
        return replace(question, question_id=f"{question.question_id}@{epoch}")


def load_splits(
    read: Callable[[str, Split], tuple[Sequence[Question], int]], path: str | None, val_path: str | None, seed: int
) -> QuestionSplits:
    """Read both files and clean them.

    Rows without an answer are dropped from both. Exact duplicates, and questions that are also asked in validation,
    are dropped from training only, so that a benchmark keeps its published size.

    Args:
        read: Reads the file of a split: its questions in order, and how many were repaired.
        path: The training file, or None.
        val_path: The validation file, or None.
        seed: Of the order of the training questions.

    Raises:
        DataError: If a file is left without a question.
    """
    reports: dict[Split, FileReport] = {}
    val: tuple[Question, ...] = ()
    train: tuple[Question, ...] = ()
    if val_path is not None:
        rows, num_repaired = read(val_path, "val")
        val = tuple(row for row in rows if row.answers)
        reports["val"] = FileReport(
            num_rows=len(rows),
            num_kept=len(val),
            num_empty_answers=len(rows) - len(val),
            num_repaired=num_repaired,
        )
    if path is not None:
        rows, num_repaired = read(path, "train")
        train, reports["train"] = _clean(rows, num_repaired, frozenset(_asked(row) for row in val))
    for name, split_path, kept in (("path", path, train), ("val_path", val_path, val)):
        if split_path is not None and not kept:
            raise DataError(f"`{name}` must hold usable questions, but none of {split_path!r} is left. {reports}")
    return QuestionSplits(train=train, val=val, seed=seed, reports=reports)


def _clean(
    rows: Sequence[Question], num_repaired: int, asked_in_val: frozenset[str]
) -> tuple[tuple[Question, ...], FileReport]:
    """Drop training rows without an answer, asked in validation, or asked before; in this order."""
    kept: dict[str, Question] = {}
    num_empty = num_overlapping = num_duplicates = 0
    for row in rows:
        asked = _asked(row)
        if not row.answers:
            num_empty += 1
        elif asked in asked_in_val:
            num_overlapping += 1
        elif asked in kept:
            num_duplicates += 1
        else:
            kept[asked] = row
    report = FileReport(
        num_rows=len(rows),
        num_kept=len(kept),
        num_empty_answers=num_empty,
        num_duplicates=num_duplicates,
        num_overlapping=num_overlapping,
        num_repaired=num_repaired,
    )
    return tuple(kept.values()), report


def _asked(question: Question) -> str:
    """Return the text of the question itself, without system messages."""
    return question.messages[-1].content


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """Return the order of the training questions in one epoch."""
    order = list(range(size))
    Random(f"epoch-order/{seed}/{epoch}").shuffle(order)
    return tuple(order)
