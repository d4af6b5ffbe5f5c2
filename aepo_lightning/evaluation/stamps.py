"""What the stamp of an evaluation says of its parts, in plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aepo_lightning import __version__
from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.engine import Engine, TypedEngine
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import BranchingToolRunner, ToolRunner
from aepo_lightning.rollout.description import digest_of, question_digest

_ENGINES = {"VLLMEngine": "vllm", "VLLMServerEngine": "vllm", "TransformersEngine": "transformers"}
"""Which package computes the tokens of an engine."""


def question_digests(questions: Sequence[Question], chat_format: ChatFormat) -> list[str]:
    """Return a digest of each question: prompt in tokens, accepted answers, documents, metadata."""
    return [question_digest(each, chat_format) for each in questions]


def model_settings(identity: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """Return what is known of the weights, and the precision in which they generate if the engine says it."""
    return {**identity, "dtype": engine.dtype} if isinstance(engine, TypedEngine) else dict(identity)


def tool_settings(runner: ToolRunner) -> dict[str, Any]:
    """Return each tool by its name, with its version and a digest of its settings."""
    specs = runner.specs if isinstance(runner, BranchingToolRunner) else ()
    known = {spec.name: {"version": spec.version, "digest": digest_of(spec)} for spec in specs}
    return {name: known.get(name, {}) for name in runner.tool_names}


def part_settings(part: object) -> dict[str, Any]:
    """Return the name of a part and those of its settings that are plain values, such as those of a rule."""
    plain: dict[str, Any] = {"part": part_name(part)}
    if isinstance(identity := getattr(part, "identity", None), Mapping):
        return plain | dict(identity)  # such as that of a judge, which leaves out addresses and keys
    if is_dataclass(part) and not isinstance(part, type):
        for each in fields(part):
            value = getattr(part, each.name)
            if each.init and isinstance(value, str | int | float | bool | tuple | list | type(None)):
                plain[each.name] = value
    return plain


def versions(engine: Engine) -> dict[str, str]:
    """Return the versions of this library and of what generates."""
    found = {"aepo_lightning": __version__, "engine": type(engine).__name__}
    package = _ENGINES.get(type(engine).__name__, "")
    try:
        return found | ({package: version(package)} if package else {})
    except PackageNotFoundError:  # such as a CPU build under another name
        return found
