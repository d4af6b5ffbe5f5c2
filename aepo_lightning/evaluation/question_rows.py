"""Rows of a benchmark as questions: where a row holds what, which rows are left out, and what is wrong with others.

Fields have alternatives, because one set is published under other names in other places: `question`, `problem`.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from aepo_lightning.contracts.question import Question
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.answers import answer_proper, check_answer_pattern, read_answers
from aepo_lightning.tasks.paths import BrokenRuleError
from aepo_lightning.tasks.prompts import check_text, with_system

Rows = Sequence[tuple[str, Mapping[str, Any]]]
"""Where each row stands, such as `gaia.jsonl, line 3`, and its fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRows:
    """Reads rows as questions. Of each list of names, the first that a row has counts; dots reach into nested fields.

    Raises:
        ConfigError: If `answer_pattern` cannot be used, or a number is not positive.
    """

    question_fields: Sequence[str] = ("question",)
    answer_fields: Sequence[str] = ("answer",)
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer proper. None takes all."""
    withheld_answers: Sequence[str] = ()
    """What rows write where the answer is kept back, such as `?`: no gold."""
    id_fields: Sequence[str] = ()
    """What names a row. Without one, its place among the rows does."""
    level_fields: Sequence[str] = ()
    """Of these, the first that a row has is its level."""
    level_names: Mapping[str, str] = field(default_factory=dict)
    """Levels by what the rows call them. What is not listed keeps its own name."""
    choices_field: str = ""
    """A list of what a multiple-choice question offers, in the order of its letters."""
    attachment_fields: Sequence[str] = ()
    """Rows that have something there, such as an image or a file, are left out: policies read text."""
    canary_field: str = ""
    """The key with which a row's question and answer are encrypted. Rows without it are plain."""
    system_prompt: str = ""
    """Sent before the question, in place of what the chat format says of the tools. Empty leaves that to the format."""
    max_questions: int | None = None
    """Of the rows that are not left out, the first so many. None takes all."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.max_questions is not None and self.max_questions < 1:
            raise ConfigError(f"`max_questions` must be at least 1 or null, but got {self.max_questions}.")
        check_answer_pattern(self.answer_pattern)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every field that is looked at, if a row has it."""
        lists = (self.question_fields, self.answer_fields, self.id_fields, self.level_fields, self.attachment_fields)
        single = (self.choices_field, self.canary_field)
        return tuple(name for name in (*(each for names in lists for each in names), *single) if name)

    def questions(self, name: str, rows: Rows) -> tuple[Question, ...]:
        """Return the questions of some rows.

        Args:
            name: The benchmark's, which begins every id.
            rows: With where they stand.

        Raises:
            DataError: If a row has no question or no gold, two have the same id, or no row is left.
        """
        found: dict[str, tuple[str, Question]] = {}
        for number, (place, row) in enumerate(rows):
            if any(_reach(row, each) for each in self.attachment_fields):
                continue
            question = self._question(name, number, place, row)
            earlier, _ = found.setdefault(question.question_id, (place, question))
            if earlier != place:
                raise DataError(
                    f"{place}: the id of a question must be its own, but {question.question_id!r} stands in {earlier} "
                    "as well. Remove one of the rows."
                )
            if len(found) == self.max_questions:
                break
        if not found:
            raise DataError(f"{name} must have a question that is text alone, but none of {len(rows)} rows is left.")
        return tuple(question for _, question in found.values())

    def _question(self, name: str, number: int, place: str, row: Mapping[str, Any]) -> Question:
        key = _reach(row, self.canary_field) if self.canary_field else None
        asked = self._text(place, row, self.question_fields, key)
        own_id = next((each for each in (_reach(row, each) for each in self.id_fields) if each is not None), number)
        level = next((each for each in (_reach(row, each) for each in self.level_fields) if each is not None), "")
        choices = {"choices": self._choices(place, row)} if self.choices_field else {}
        return Question(
            question_id=f"{name}-{own_id}",
            messages=with_system(self.system_prompt, asked),
            answers=self._golds(place, row, key),
            metadata={"benchmark": name, "level": self.level_names.get(str(level), str(level))} | choices,
        )

    def _text(self, place: str, row: Mapping[str, Any], names: Sequence[str], key: Any) -> str:
        name, value = _first(place, row, names)
        try:
            value = check_text(value) if isinstance(value, str) else value
            if not isinstance(value, str) or not value.strip():
                raise BrokenRuleError("be a non-empty text")
            return value if key is None else decrypted(value, str(key))
        except BrokenRuleError as error:
            raise _row_error(place, name, error.rule, value) from None

    def _choices(self, place: str, row: Mapping[str, Any]) -> list[Any]:
        value = _reach(row, self.choices_field)
        if value is None:
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _row_error(place, self.choices_field, "be a list of texts", value)
        return list(value)

    def _golds(self, place: str, row: Mapping[str, Any], key: Any) -> tuple[str, ...]:
        name, value = _first(place, row, self.answer_fields)
        try:
            golds = tuple(map(check_text, read_answers(value)))
            golds = golds if key is None else tuple(decrypted(gold, str(key)) for gold in golds)
        except BrokenRuleError as error:
            raise _row_error(place, name, error.rule, value) from None
        golds = tuple(self._proper(place, name, gold) for gold in golds if gold not in self.withheld_answers)
        golds = tuple(filter(None, golds))
        if not golds:
            raise _row_error(place, name, "hold an accepted answer", value)
        return golds

    def _proper(self, place: str, name: str, gold: str) -> str:
        try:
            return answer_proper(gold, self.answer_pattern)
        except BrokenRuleError as error:
            raise _row_error(place, name, error.rule, gold) from None


def decrypted(text: str, key: str) -> str:
    """Return a text that was combined byte by byte with a repeated key (exclusive or) and written in base64.

    This is how xbench keeps its questions out of what is crawled; the key stands beside each.

    Raises:
        BrokenRuleError: If it is not such a text under this key.
    """
    try:
        mixed = b64decode(text, validate=True)
        return bytes(a ^ b for a, b in zip(mixed, cycle(key.encode()), strict=False)).decode()
    except ValueError:  # of base64 and of UTF-8 alike
        raise BrokenRuleError("be encrypted with the key of its row", value=text) from None


def _first(place: str, row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """Return the first of some fields that a row has."""
    for name in names:
        value = _reach(row, name)
        if value is not None:
            return name, value
    told = " or ".join(f"`{name}`" for name in names)
    raise DataError(f"{place} must have a field {told}, but has {list(row)}. This is another file, or a broken row.")


def _reach(row: Any, name: str) -> Any:
    """Return a field, or None if it is not there; dots reach into fields of fields."""
    if not isinstance(row, Mapping):
        return None
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    return _reach(row.get(head), rest) if rest else None


def _row_error(place: str, name: str, rule: str, value: object) -> DataError:
    found = f"{type(value).__name__} {value!r:.80}"
    return DataError(f"{place}: `{name}` must {rule}, but got {found}. Correct the row, or get the file again.")
