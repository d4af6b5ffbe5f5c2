"""What an evaluation found: one line a trajectory with everything needed to judge it again, under a stamp.

A file holds one benchmark under one stamp, which its first line says. Lines have checksums (`rollout/checked_lines.py`)
and are written whole: an evaluation that is killed, at whatever moment, loses at most the trajectory that it was
writing, and the next start makes only what is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from json import dumps
from math import isfinite
from typing import Any, TypeAlias

from aepo_lightning.contracts.checker import Claim, Outcome, Verdict
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.errors import DataError
from aepo_lightning.rollout.plain import fields_of

Pair: TypeAlias = tuple[str, int]
"""A question by its id, and the number of a sample, from 0."""
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryResult:
    """A finished trajectory of an evaluation: what was asked, what came back, what was found, what it took.

    Raises:
        ValueError: If a number is negative or not finite.
    """

    benchmark: str
    question_id: str
    sample: int
    """Which of the samples of the question, from 0."""
    question: str
    """As it was asked, without what was said about tools and form."""
    golds: tuple[str, ...]
    """Accepted answers; empty where none is known."""
    response_text: str
    """Everything after the prompt, tool results included, decoded without special tokens."""
    answer: str
    """As it was read from the response; empty if there was none."""
    verdict: Verdict
    stop_reason: StopReason
    choices: tuple[str, ...] = ()
    """What a multiple-choice question offers, in the order of its letters."""
    level: str = ""
    """The group of the question within the benchmark, such as its difficulty. Empty where there are none."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Further numbers by name, such as `em`, `f1` and the terms of a reward."""
    num_calls: Mapping[str, int] = field(default_factory=dict)
    """Tool calls that were answered, by tool, failed ones included."""
    num_failed_calls: Mapping[str, int] = field(default_factory=dict)
    """Those whose result was not `ok`, by `ToolStatus`."""
    num_outages: int = 0
    """Those for which what stands behind the tool is to blame, and not the call: `ToolResult.is_outage`."""
    num_generated_tokens: int = 0
    """Tokens that the policy sampled: the length of the response without tool results."""
    num_result_tokens: int = 0
    """Tokens of tool results."""
    seed: int = 0
    """From which every random number of the trajectory derives, together with the question and the sample."""

    def __post_init__(self) -> None:
        """Refuse what could not be read back or counted."""
        counts: dict[str, float] = {"sample": self.sample, "num_generated_tokens": self.num_generated_tokens}
        counts |= {"num_result_tokens": self.num_result_tokens, "num_outages": self.num_outages}
        counts |= {**self.num_calls, **self.num_failed_calls}
        for name, value in counts.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be finite and not negative, but got {value}.")
        for name, score in self.scores.items():
            if not isfinite(score):
                raise ValueError(
                    f"The score `{name}` must be finite, but got {score}. Leave out what was not computed."
                )

    @property
    def pair(self) -> Pair:
        """The question and the sample: what an evaluation has once."""
        return self.question_id, self.sample

    @property
    def num_tool_calls(self) -> int:
        """Tool calls that were answered, of all tools."""
        return sum(self.num_calls.values())

    @property
    def claim(self) -> Claim:
        """What a checker is asked, to judge it again."""
        return Claim(
            question=self.question,
            golds=self.golds,
            answer=self.answer,
            question_id=self.question_id,
            choices=self.choices,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationStamp:
    """Under which settings trajectories were made and judged. Two that differ never stand in one file.

    The mappings hold plain values, as JSON has them, and may be nested. What has no place in them: folders and
    addresses of this machine, and secrets.
    """

    benchmark: str
    benchmark_digest: str
    """Names the questions: those of another file, or of another choice of it, have another."""
    protocol: Mapping[str, Any]
    """Limits of calls, messages at the limits, prompts, stop strings, extraction of answers."""
    model: Mapping[str, Any]
    """Which weights: name, revision or digest, optimiser steps; of engines that say it, in which precision."""
    sampling: Mapping[str, Any]
    """Temperature and its like, and limits of tokens."""
    tools: Mapping[str, Any]
    checker: Mapping[str, Any]
    """The rule or judge that gave the verdicts, with its settings."""
    seed: int
    num_samples: int
    """Of each question."""
    num_questions: int | None = None
    """How many are asked, so that results which are not whole show it. None does not say."""
    metric: str = "accuracy"
    """What the headline averages: `accuracy`, whether verdicts are correct, or `f1`, their scores."""
    is_other_version: bool = False
    """Whether the questions are another version than the known one, which was accepted all the same."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of this library and of what it generates with."""

    @property
    def digest(self) -> str:
        """A short name of all of it: the same for the same settings, in whatever order they are given."""
        text = dumps(_plain(self), sort_keys=True)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def differences(self, other: "EvaluationStamp", names: Sequence[str] | None = None) -> list[str]:
        """Return the settings that differ, one in a line: `sampling.temperature: 0.6 -> 1.0`.

        Args:
            other: What this one is compared with; its values stand right.
            names: Fields to look at. Default: all.
        """
        wanted = [each.name for each in fields(self)] if names is None else names
        own, theirs = _plain(self), _plain(other)
        return list(unequal_settings({name: own[name] for name in wanted}, {name: theirs[name] for name in wanted}))


def _plain(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON gives them back."""
    return {each.name: _as_json(getattr(value, each.name)) for each in fields(value)}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return value


def unequal_settings(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield where plain values differ, one setting in a line: `sampling.temperature: 0.6 -> 1.0`.

    Args:
        old: As JSON has it, such as nested mappings.
        new: What stands right of the arrow.
        key: Where they stand, with dots.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            place = f"{key}.{name}" if key else name
            yield from unequal_settings(old.get(name, _ABSENT), new.get(name, _ABSENT), place)
    elif old != new or isinstance(old, bool) is not isinstance(new, bool):
        yield f"{key}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = "(not there)" if value is _ABSENT else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def result_to_dict(result: TrajectoryResult) -> dict[str, Any]:
    """Return a result as plain values."""
    plain = fields_of(result)
    plain |= {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
    return plain | {"golds": [*result.golds], "choices": [*result.choices], "verdict": fields_of(result.verdict)}


def result_from_dict(plain: Mapping[str, Any]) -> TrajectoryResult:
    """Rebuild a result from `result_to_dict`.

    Raises:
        DataError: If a field is missing or of the wrong kind.
    """
    try:
        values = dict(plain)
        verdict = dict(values["verdict"])
        values["verdict"] = Verdict(**{**verdict, "outcome": Outcome(verdict["outcome"])})
        values["stop_reason"] = StopReason(values["stop_reason"])
        values |= {name: tuple(values[name]) for name in ("golds", "choices")}
        return TrajectoryResult(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a line must have the fields of `TrajectoryResult`, but: {error!r}.") from error


def stamp_to_dict(stamp: EvaluationStamp) -> dict[str, Any]:
    """Return a stamp as plain values."""
    return _plain(stamp)


def stamp_from_dict(plain: Mapping[str, Any]) -> EvaluationStamp:
    """Rebuild a stamp from `stamp_to_dict`.

    Raises:
        DataError: If a field is missing or unknown.
    """
    try:
        return EvaluationStamp(**plain)
    except TypeError as error:
        raise DataError(f"the first line must have the fields of `EvaluationStamp`, but: {error!r}.") from error
