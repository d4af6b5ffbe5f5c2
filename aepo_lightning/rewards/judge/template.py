"""What a judge is told and what it must reply, as data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from aepo_lightning.errors import ConfigError


class Ruling(StrEnum):
    """What a word of a judge means."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTemplate:
    """Instructions, and the shape of the reply: one JSON object with exactly the fields that are named here.

    Raises:
        ConfigError: If the fields do not hold verdict and reason, or no word means `correct` or `incorrect`.
    """

    name: str
    instructions: str
    """When an answer is correct. Question, accepted answers and answer follow in another message, behind a fence."""
    fields: Mapping[str, str]
    """Field of the reply to what it holds, in the order in which the judge writes them: reasons before the verdict."""
    verdict_field: str = "verdict"
    reason_field: str = "reason"
    percent_fields: tuple[str, ...] = ()
    """Fields that hold whole numbers from 0 to 100 instead of text."""
    words: Mapping[str, str] = field(
        default_factory=lambda: {"correct": "correct", "incorrect": "incorrect", "abstain": "abstain"}
    )
    """Word of the verdict to what it means: `correct`, `incorrect` or `abstain`."""

    def __post_init__(self) -> None:
        """Refuse what could give no verdict."""
        named = {self.verdict_field, self.reason_field, *self.percent_fields}
        if missing := sorted(named - {*self.fields}):
            raise ConfigError(
                f"`fields` of the judge template {self.name!r} must hold {', '.join(missing)}, but got "
                f"{', '.join(self.fields) or 'none'}. Add what is missing, or name another field."
            )
        if self.verdict_field == self.reason_field or self.verdict_field in self.percent_fields:
            raise ConfigError(
                f"`verdict_field` of the judge template {self.name!r} must be a field of its own, but got "
                f"{self.verdict_field!r}, which also holds something else. Name two fields."
            )
        if not {"correct", "incorrect"} <= {*self.words.values()} <= {*Ruling}:
            raise ConfigError(
                f"`words` of the judge template {self.name!r} must mean correct, incorrect and, if need be, abstain, "
                f"but got {dict(self.words)}. Write each word of the verdict with one of these."
            )

    @property
    def digest(self) -> str:
        """Names everything that the template says, whatever the template is called."""
        said: list[Any] = [self.instructions, [*self.fields.items()], self.verdict_field, self.reason_field]
        said += [sorted(self.percent_fields), sorted(self.words.items())]
        return blake2b(json.dumps(said).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the reply."""
        return {
            "type": "object",
            "properties": {name: self._property(name) for name in self.fields},
            "required": [*self.fields],
            "additionalProperties": False,
        }

    def _property(self, name: str) -> dict[str, Any]:
        if name == self.verdict_field:
            return {"type": "string", "enum": [*self.words], "description": self.fields[name]}
        kind = "integer" if name in self.percent_fields else "string"
        return {"type": kind, "description": self.fields[name]}
