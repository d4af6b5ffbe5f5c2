"""One row of a question file as a question: which fields hold what, and what is wrong where one does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aepo_lightning.contracts.question import Message, Question, Split
from aepo_lightning.errors import DataError
from aepo_lightning.tasks.answers import answer_proper, check_answer_pattern, read_answers
from aepo_lightning.tasks.paths import BrokenRuleError, row_error
from aepo_lightning.tasks.prompts import check_text, read_messages, with_system

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A row of a file."""

    path: Path
    label: str
    """Of the file, in ids: different for each file of a split."""
    unit: str
    """What a row is called: `row`, `line` or `item`."""
    number: int

    def __str__(self) -> str:
        """Return which row it is, in words."""
        return f"{self.unit} {self.number}"

    def question_id(self, split: Split) -> str:
        """Return an id that no other row of the run has."""
        return f"{split}-{self.label}-{self.number}"


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
        check_answer_pattern(self.answer_pattern)

    def question(self, place: Place, split: Split, row: Mapping[str, Any]) -> Question:
        """Turn a row into a question, without answers if none is given.

        Args:
            place: Where the row stands.
            split: That of its file.
            row: Its fields by name.

        Raises:
            DataError: If a field is missing or of the wrong type.
        """
        asked = _field(place, "question_field", self.question_field, row)
        gold = _field(place, "answer_field", self.answer_field, row)
        ability = {"ability": self.ability} if self.ability else {}
        return Question(
            question_id=place.question_id(split),
            messages=checked(place, self.question_field, self._messages, asked),
            answers=self._answers(place, gold),
            metadata={"file": place.path.name, place.unit: place.number} | ability,
        )

    def _messages(self, asked: object) -> tuple[Message, ...]:
        if isinstance(asked, list):
            messages = read_messages(asked)
            is_told = any(message.role == "system" for message in messages)
            own = Message(role="system", content=self.system_prompt)
            return messages if is_told or not self.system_prompt else (own, *messages)
        if not isinstance(asked, str) or not asked.strip():
            raise BrokenRuleError("be a non-empty text")
        return with_system(self.system_prompt, check_text(asked))

    def _answers(self, place: Place, value: object) -> tuple[str, ...]:
        """Check and convert the accepted answers of one row, blank ones dropped."""
        answers = checked(place, self.answer_field, read_answers, value)
        proper = (self._extract(place, answer) for answer in answers)
        return tuple(answer for answer in proper if answer)

    def _extract(self, place: Place, answer: str) -> str:
        """Return the answer proper."""
        checked(place, self.answer_field, check_text, answer)
        return checked(place, self.answer_field, lambda text: answer_proper(text, self.answer_pattern), answer)


def checked(place: Place, field: str, read: Callable[[Any], T], value: object) -> T:
    """Return what `read` makes of the value of a field.

    Raises:
        DataError: If the value breaks a rule, with where it stands.
    """
    try:
        return read(value)
    except BrokenRuleError as error:
        found = error.value if error.part else value
        raise row_error(place.path, str(place), field + error.part, error.rule, found) from None


def column_of(name: str, columns: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the column that a field is in: the one of that name, else the one before the first dot."""
    return name if name in columns else name.partition(".")[0]


def _field(place: Place, setting: str, name: str, row: Mapping[str, Any]) -> object:
    """Return a field, which may be nested, of one row; of a list of objects, the list of the field of each."""
    return _reach(place, setting, name, name, row)


def _reach(place: Place, setting: str, name: str, rest: str, value: object) -> object:
    """Follow the rest of a name into a value."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return [_reach(place, setting, name, rest, each) for each in value]
    if not isinstance(value, Mapping) or column_of(rest, value) not in value:
        found = list(value) if isinstance(value, Mapping) else f"{type(value).__name__} {value!r:.80}"
        above = name.removesuffix(rest).rstrip(".")
        raise DataError(
            f"{place.path}, {place} must have a field `{name}`, but {f'`{above}` is' if above else 'has'} {found}. "
            f"Set `{setting}` to another name."
        )
    key = column_of(rest, value)
    below = rest.removeprefix(key)[1:]
    return _reach(place, setting, name, below, value[key]) if below else value[key]
