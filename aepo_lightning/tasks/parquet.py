"""Reader of the question files that the authors of ARPO and AEPO publish (verl's parquet layout).

Columns read: `prompt` (list of role and content), `reward_model.ground_truth`, and, where present, `data_source`,
`ability` and `extra_info.index`. The published files differ in their schemas and have faults; see `OfficialParquet`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aepo_lightning.contracts.question import Message, Question, Split
from aepo_lightning.errors import DataError
from aepo_lightning.tasks.file_report import FileReport
from aepo_lightning.tasks.paths import find_file, row_error
from aepo_lightning.tasks.splits import QuestionSplits, load_splits

_logger = logging.getLogger(__name__)

_BROKEN_BOXED = "\x08oxed"
_REQUIRED_COLUMNS = ("prompt", "reward_model")
_OPTIONAL_COLUMNS = ("data_source", "ability", "extra_info")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialParquet:
    r"""Questions of the published training and validation files.

    Known faults of these files and what is done about them: every system prompt holds a backspace where the `\b` of
    `\boxed` was meant (repaired, one logged warning a file); a row may have no gold answer (dropped); training
    questions occur twice (the first is kept) or are also asked in validation (dropped). `reports` has the counts.

    Raises:
        DataError: If a file is missing, cannot be read, lacks a column or has a value of the wrong type.
    """

    path: str
    """The training file. A relative path starts from `data_dir` if given, else from the working directory if the file
    is there."""
    val_path: str | None = None
    """The validation file; without one the validation split is empty."""
    data_dir: str | None = None
    """None takes the environment variable `AEPO_DATA_DIR`, else `shared/data` beside the checkout."""
    fix_boxed: bool = True
    """Whether to repair `\\boxed` in prompts. Off reproduces the published prompts byte by byte."""
    seed: int = 0
    """Of the order of the training questions, which is drawn anew in every epoch."""
    _splits: QuestionSplits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read both files, so that every fault shows at the start."""
        object.__setattr__(self, "_splits", load_splits(self._read, self.path, self.val_path, self.seed))

    @property
    def reports(self) -> Mapping[Split, FileReport]:
        """What was read, repaired and dropped, for each split that has a file."""
        return self._splits.reports

    def num_questions(self, split: Split) -> int | None:
        """Return the number of questions that are left of a split, hence the length of an epoch."""
        return self._splits.num_questions(split)

    def question(self, split: Split, index: int) -> Question:
        """Return question `index`; past the end of training another epoch begins in another order.

        Raises:
            IndexError: If the index is negative or beyond the end of the validation split.
        """
        return self._splits.question(split, index)

    def _read(self, path: str, split: Split) -> tuple[Sequence[Question], int]:
        """Return the questions of one file and how many were repaired."""
        full = find_file(path, self.data_dir)
        questions = [_question(full, split, number, row) for number, row in enumerate(_read_rows(full))]
        if not self.fix_boxed:
            return questions, 0
        num_broken = sum(any(_BROKEN_BOXED in m.content for m in question.messages) for question in questions)
        if num_broken:
            _logger.warning("%s: repaired a backspace to the \\b of \\boxed in %d prompts.", full.name, num_broken)
        return [_with_boxed(question) for question in questions], num_broken


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the columns of a file that matter, row by row."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} must be a parquet file, but reading it failed: {error}. Download it again.") from error
    missing = [name for name in _REQUIRED_COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path} must have a column `{missing[0]}`, but has {table.column_names}. Rename or add it.")
    present = [name for name in (*_REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS) if name in table.column_names]
    rows: list[dict[str, Any]] = table.select(present).to_pylist()
    return rows


def _question(path: Path, split: Split, number: int, row: Mapping[str, Any]) -> Question:
    """Turn one row into a question, without answers if the gold is empty."""
    extra_info = row.get("extra_info")
    known = {"data_source": row.get("data_source"), "ability": row.get("ability"), "row": number, "file": path.name}
    if isinstance(extra_info, Mapping):
        known["index"] = extra_info.get("index")
    return Question(
        question_id=f"{split}-{path.stem}-{number}",
        messages=_messages(path, number, row["prompt"]),
        answers=_answers(path, number, row["reward_model"]),
        metadata={name: value for name, value in known.items() if value is not None},
    )


def _messages(path: Path, number: int, value: object) -> tuple[Message, ...]:
    """Check and convert the `prompt` of one row."""
    if not isinstance(value, list) or not value:
        raise row_error(path, f"row {number}", "prompt", "be a non-empty list of messages", value)
    messages = []
    for position, message in enumerate(value):
        parts = message if isinstance(message, Mapping) else {}
        role, content = parts.get("role"), parts.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise row_error(path, f"row {number}", f"prompt[{position}]", "have a text role and content", message)
        messages.append(Message(role=role, content=content))
    return tuple(messages)


def _answers(path: Path, number: int, value: object) -> tuple[str, ...]:
    """Check and convert the gold answers of one row: a text or a list of texts, blank ones dropped."""
    if not isinstance(value, Mapping) or "ground_truth" not in value:
        raise row_error(path, f"row {number}", "reward_model", "hold a `ground_truth`", value)
    gold = value["ground_truth"]
    answers = gold if isinstance(gold, list) else [gold]
    for answer in answers:
        if answer is not None and not isinstance(answer, str):
            raise row_error(path, f"row {number}", "reward_model.ground_truth", "be a text or a list of texts", gold)
    return tuple(answer for answer in answers if answer is not None and answer.strip())


def _with_boxed(question: Question) -> Question:
    r"""Return the question with `\boxed` in place of the backspace that stands for its first two characters."""
    if not any(_BROKEN_BOXED in message.content for message in question.messages):
        return question
    fixed = (
        replace(message, content=message.content.replace(_BROKEN_BOXED, "\\boxed")) for message in question.messages
    )
    return replace(question, messages=tuple(fixed))
