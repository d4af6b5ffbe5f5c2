"""Readers of parquet files: those of anyone, and those that the authors of ARPO and AEPO publish (verl's layout).

`ParquetQuestions` reads a column with the question and one with the answer. `OfficialParquet` reads `prompt` (list of
role and content), `reward_model.ground_truth`, and, where present, `data_source`, `ability` and `extra_info.index`; the
published files differ in their schemas and have faults.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aepo_lightning.contracts.question import OnObjection, Question, Split
from aepo_lightning.errors import DataError
from aepo_lightning.tasks.answers import read_answers
from aepo_lightning.tasks.own_files import NumberedRows, OwnFiles, make_source, read_all
from aepo_lightning.tasks.paths import BrokenRuleError, FilePaths
from aepo_lightning.tasks.prompts import check_text, read_messages
from aepo_lightning.tasks.rows import Place, checked, column_of
from aepo_lightning.tasks.splits import OnConflict, QuestionSplits, Source, StoredQuestions, check_choices

_REQUIRED_COLUMNS = ("prompt", "reward_model")
_OPTIONAL_COLUMNS = ("data_source", "ability", "extra_info")


@dataclass(frozen=True, slots=True)
class ParquetQuestions(OwnFiles):
    """Questions of parquet files: one column with the question, one with the answer or a list of accepted answers.

    Every field is explained in `OwnFiles`.

    Raises:
        ConfigError: If no file is named or a setting has no meaning.
        DataError: If a file is missing, cannot be read, lacks a column or has a value of the wrong type.
    """

    def _read(self, path: Path) -> NumberedRows:
        """Return the rows of one file, with the columns that are asked for."""
        return "row", list(enumerate(read_parquet(path, (self.question_field, self.answer_field))))


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialParquet(StoredQuestions):
    r"""Questions of the published training and validation files.

    Known faults of these files and what is done about them: every system prompt holds a backspace where the `\b` of
    `\boxed` was meant (repaired); a row may have no gold answer (dropped); training questions occur twice (the first is
    kept) or are also asked in validation (dropped). `reports` has the counts, `summary` says them in one line a file.

    Raises:
        ConfigError: If a setting has no meaning.
        DataError: If a file is missing, cannot be read, lacks a column or has a value of the wrong type.
    """

    path: FilePaths
    """The training file. Relative paths start from the working directory if the file is there, else from `data_dir`."""
    val_path: FilePaths | None = None
    """The validation file; without one the validation split is empty."""
    data_dir: str | None = None
    """None takes the environment variable `AEPO_DATA_DIR`, else `shared/data` beside the checkout."""
    fix_boxed: bool = True
    """Whether to repair `\\boxed` in prompts. Off reproduces the published prompts byte by byte."""
    on_conflict: OnConflict = "merge"
    """As in `OwnFiles`."""
    on_bad_gold: OnObjection = "drop"
    """As in `OwnFiles`."""
    seed: int = 0
    """Of the order of the training questions, which is drawn anew in every epoch."""

    def __post_init__(self) -> None:
        """Read both files, so that every fault shows at the start."""
        check_choices(self.on_conflict, self.on_bad_gold)
        train = read_all(self._read, self.path, self.data_dir, "train")
        val = read_all(self._read, self.val_path, self.data_dir, "val")
        object.__setattr__(self, "_splits", QuestionSplits(train, val, self.seed))
        self._splits.clean(self.on_conflict)
        self._splits.refuse_nothing()

    def _read(self, path: Path, label: str, split: Split) -> Source:
        """Return the questions of one file."""
        rows = read_parquet(path, _REQUIRED_COLUMNS, _OPTIONAL_COLUMNS)
        places = [Place(path=path, label=label, unit="row", number=number) for number in range(len(rows))]
        questions = [_question(place, split, row) for place, row in zip(places, rows, strict=True)]
        return make_source(path, questions, [str(place) for place in places], self.fix_boxed)


def read_parquet(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the columns of a file that matter, row by row; a name with dots stands for the column it reaches into.

    Raises:
        DataError: If it is no parquet file or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            wanted = [column_of(name, columns) for name in (*required, *optional)]
            table = file.read(columns=[name for name in dict.fromkeys(wanted) if name in columns])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} must be a parquet file, but reading it failed: {error}. Download it again.") from error
    missing = [name for name in required if column_of(name, columns) not in columns]
    if missing:
        raise DataError(f"{path} must have a column `{missing[0]}`, but has {columns}. Rename or add it.")
    twice = [name for name in dict.fromkeys(wanted) if columns.count(name) > 1]
    if twice:
        raise DataError(f"{path} must have each column once, but has `{twice[0]}` {columns.count(twice[0])} times.")
    try:
        rows: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} must have each key of a map once, but: {error}. Correct it.") from error
    return rows


def _question(place: Place, split: Split, row: Mapping[str, Any]) -> Question:
    """Turn one row into a question, without answers if the gold is empty."""
    extra_info, path = row.get("extra_info"), place.path
    known = {"data_source": row.get("data_source"), "ability": row.get("ability")}
    known |= {"row": place.number, "file": path.name}
    if isinstance(extra_info, Mapping):
        known["index"] = extra_info.get("index")
    reward_model = checked(place, "reward_model", _holding_gold, row["reward_model"])
    return Question(
        question_id=place.question_id(split),
        messages=checked(place, "prompt", read_messages, row["prompt"]),
        answers=checked(place, "reward_model.ground_truth", _gold, reward_model["ground_truth"]),
        metadata={name: value for name, value in known.items() if value is not None},
    )


def _holding_gold(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or "ground_truth" not in value:
        raise BrokenRuleError("hold a `ground_truth`")
    return value


def _gold(value: object) -> tuple[str, ...]:
    return tuple(check_text(answer) for answer in read_answers(value))
