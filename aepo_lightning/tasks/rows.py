"""One row of a question file as a question: which fields hold what, and what is wrong where one does not."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo_lightning.contracts.question import Question, Split
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.paths import row_error
from aepo_lightning.tasks.prompts import with_system


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFields:
    """Where a row has its question and its answers; names with dots reach into nested fields.

    Raises:
        ConfigError: If `answer_pattern` cannot be used.
    """

    question_field: str
    answer_field: str
    answer_pattern: str | None
    """Regular expression whose first group is the answer proper. None takes all."""
    ability: str
    """Kept in the metadata if it is not empty."""
    system_prompt: str
    """Sent before the question if it is not empty."""

    def __post_init__(self) -> None:
        """Refuse a regular expression that is broken or has no group."""
        if self.answer_pattern is None:
            return
        try:
            num_groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            raise ConfigError(
                f"`answer_pattern` must be a regular expression, but got {self.answer_pattern!r}: {error}."
            ) from error
        if num_groups < 1:
            raise ConfigError(
                f"`answer_pattern` must have a group, but got {self.answer_pattern!r}. Put the answer in parentheses."
            )

    def question(self, path: Path, split: Split, place: tuple[str, int], row: Mapping[str, Any]) -> Question:
        """Turn a row into a question, without answers if none is given.

        Args:
            path: Its file.
            split: That of the file.
            place: What a row is called (`row` or `line`), and its number.
            row: Its fields by name.

        Raises:
            DataError: If a field is missing or of the wrong type.
        """
        unit, number = place
        where = f"{unit} {number}"
        asked = _field(path, where, "question_field", self.question_field, row)
        if not isinstance(asked, str) or not asked.strip():
            raise row_error(path, where, self.question_field, "be a non-empty text", asked)
        return Question(
            question_id=f"{split}-{path.stem}-{number}",
            messages=with_system(self.system_prompt, asked),
            answers=self._answers(path, where, _field(path, where, "answer_field", self.answer_field, row)),
            metadata={"file": path.name, unit: number} | ({"ability": self.ability} if self.ability else {}),
        )

    def _answers(self, path: Path, where: str, value: object) -> tuple[str, ...]:
        """Check and convert the accepted answers of one row, blank ones dropped."""
        answers = []
        for answer in value if isinstance(value, list) else [value]:
            if answer is None or (isinstance(answer, float) and math.isnan(answer)):
                continue
            if not isinstance(answer, str | int | float) or isinstance(answer, bool):
                rule = "be a text, a number or a list of them"
                raise row_error(path, where, self.answer_field, rule, value)
            answers.append(self._extract(path, where, str(answer)))
        return tuple(answer for answer in answers if answer.strip())

    def _extract(self, path: Path, where: str, answer: str) -> str:
        """Return the answer proper."""
        if self.answer_pattern is None or not answer.strip():
            return answer
        match = re.search(self.answer_pattern, answer)
        if match is None or match.group(1) is None:
            raise row_error(path, where, self.answer_field, f"match {self.answer_pattern!r}", answer)
        return match.group(1).strip()


def column_of(name: str, columns: Mapping[str, Any] | list[str]) -> str:
    """Return the column that a field is in: the one of that name, else the one before the first dot."""
    return name if name in columns else name.partition(".")[0]


def _field(path: Path, where: str, setting: str, name: str, row: Mapping[str, Any]) -> object:
    """Return a field, which may be nested, of one row."""
    value: object = row
    rest: str | None = name
    while rest is not None:
        if not isinstance(value, Mapping) or column_of(rest, value) not in value:
            found = list(value) if isinstance(value, Mapping) else f"{type(value).__name__} {value!r:.80}"
            above = name.removesuffix(rest).rstrip(".")
            raise DataError(
                f"{path}, {where} must have a field `{name}`, but {f'`{above}` is' if above else 'has'} {found}. "
                f"Set `{setting}` to another name."
            )
        key = column_of(rest, value)
        value, rest = value[key], (rest.removeprefix(key)[1:] or None)
    return value
