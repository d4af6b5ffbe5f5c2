"""Reader of question files with one JSON object a line, as benchmarks are published."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from aepo_lightning.contracts.question import Question, Split
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.file_report import FileReport
from aepo_lightning.tasks.paths import find_file, row_error
from aepo_lightning.tasks.prompts import with_system
from aepo_lightning.tasks.splits import QuestionSplits, load_splits


@dataclass(frozen=True, slots=True)
class JsonlQuestions:
    """Questions of JSONL files: one field with the question, one with the answer or a list of accepted answers.

    Raises:
        ConfigError: If no file is named or `answer_pattern` cannot be used.
        DataError: If a file is missing, a line is not a JSON object, or a field is missing or of the wrong type.
    """

    path: str | None = None
    """The training file; without one the training split is empty. A relative path starts from `data_dir` if given, else from the
    working directory if the file is there."""
    _: KW_ONLY
    val_path: str | None = None
    """The validation file; without one the validation split is empty."""
    data_dir: str | None = None
    """None takes the environment variable `AEPO_DATA_DIR`, else `shared/data` beside the checkout."""
    question_field: str = "question"
    answer_field: str = "answer"
    """Its value is a text, a number, or a list of them."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer proper, such as `#### (.+)` for GSM8K. None takes all."""
    ability: str = ""
    """Kind of question, `qa` or `math`, for rewards that depend on it. Kept in the metadata."""
    system_prompt: str = ""
    """Sent before the question, in place of what the chat format says of the tools. Empty leaves that to the format."""
    seed: int = 0
    """Of the order of the training questions, which is drawn anew in every epoch."""
    _splits: QuestionSplits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the files, so that every fault shows at the start."""
        if self.path is None and self.val_path is None:
            raise ConfigError("`path` or `val_path` must name a file, but got None for both. Set one of them.")
        if self.answer_pattern is not None:
            _check_pattern(self.answer_pattern)
        object.__setattr__(self, "_splits", load_splits(self._read, self.path, self.val_path, self.seed))

    @property
    def reports(self) -> Mapping[Split, FileReport]:
        """What was read and dropped, for each split that has a file."""
        return self._splits.reports

    def num_questions(self, split: Split) -> int | None:
        """Return the number of questions that are left of a split, hence the length of an epoch."""
        return self._splits.num_questions(split)

    def question(self, split: Split, index: int) -> Question:
        """Return question `index`; past the end of training another epoch begins in another order.

        Raises:
            IndexError: If the index is negative, beyond the end of validation, or if the split has no file.
        """
        return self._splits.question(split, index)

    def _read(self, path: str, split: Split) -> tuple[Sequence[Question], int]:
        """Return the questions of one file; none is ever repaired."""
        full = find_file(path, self.data_dir)
        return [self._question(full, split, line, record) for line, record in _read_lines(full)], 0

    def _question(self, path: Path, split: Split, line: int, record: Mapping[str, Any]) -> Question:
        """Turn one line into a question, without answers if none is given."""
        for name in (self.question_field, self.answer_field):
            if name not in record:
                raise DataError(
                    f"{path}, line {line} must have a field `{name}`, but has {list(record)}. Name another."
                )
        asked = record[self.question_field]
        if not isinstance(asked, str) or not asked.strip():
            raise row_error(path, f"line {line}", self.question_field, "be a non-empty text", asked)
        return Question(
            question_id=f"{split}-{path.stem}-{line}",
            messages=with_system(self.system_prompt, asked),
            answers=self._answers(path, line, record[self.answer_field]),
            metadata={"file": path.name, "line": line} | ({"ability": self.ability} if self.ability else {}),
        )

    def _answers(self, path: Path, line: int, value: object) -> tuple[str, ...]:
        """Check and convert the accepted answers of one line, blank ones dropped."""
        answers = []
        for answer in value if isinstance(value, list) else [value]:
            if answer is None:
                continue
            if not isinstance(answer, str | int | float) or isinstance(answer, bool):
                rule = "be a text, a number or a list of them"
                raise row_error(path, f"line {line}", self.answer_field, rule, value)
            answers.append(self._extract(path, line, str(answer)))
        return tuple(answer for answer in answers if answer.strip())

    def _extract(self, path: Path, line: int, answer: str) -> str:
        """Return the answer proper."""
        if self.answer_pattern is None or not answer.strip():
            return answer
        match = re.search(self.answer_pattern, answer)
        if match is None or match.group(1) is None:
            raise row_error(path, f"line {line}", self.answer_field, f"match {self.answer_pattern!r}", answer)
        return match.group(1).strip()


def _check_pattern(pattern: str) -> None:
    """Refuse a regular expression that is broken or has no group."""
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"`answer_pattern` must be a regular expression, but got {pattern!r}: {error}.") from error
    if num_groups < 1:
        raise ConfigError(f"`answer_pattern` must have a group, but got {pattern!r}. Put the answer in parentheses.")


def _read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return line number (from 1) and object of every line that is not blank."""
    records = []
    for line, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw.decode("utf-8"))
        except ValueError as error:  # malformed JSON and malformed UTF-8 are both ValueErrors
            raise DataError(f"{path}, line {line} must be one JSON object, but is not: {error}. Repair it.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {line} must be one JSON object, but got {raw[:80]!r}. Repair it.")
        records.append((line, record))
    return records
