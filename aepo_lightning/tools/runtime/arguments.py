"""What a call means to a tool: its arguments, checked, and the key under which equal calls are the same."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolSpec, ToolState, ToolStatus
from aepo_lightning.errors import ConfigError

_MAX_QUOTED = 100
RAN = frozenset({ToolStatus.OK, ToolStatus.EMPTY, ToolStatus.ERROR})
"""Calls that reached the tool and came back: a replay makes them again. What was cut off is not repeated."""


class BadArgumentsError(Exception):
    """Arguments that do not fit the schema. The message is for the model."""


class ArgumentReader:
    """Reads the arguments of calls to one tool.

    Args:
        spec: Of the tool.

    Raises:
        ConfigError: If the schema is none, is not that of an object, or lacks the text parameter.
    """

    def __init__(self, spec: ToolSpec) -> None:
        try:
            Draft202012Validator.check_schema(spec.parameters)
        except SchemaError as error:
            raise ConfigError(f"`parameters` of {spec.name!r} must be a JSON schema, but: {error.message}.") from None
        properties = spec.parameters.get("properties", {})
        names = {"", *properties} if not properties else set(properties)
        if spec.parameters.get("type") != "object" or spec.text_parameter not in names:
            raise ConfigError(
                f"`parameters` of {spec.name!r} must describe an object with {spec.text_parameter!r} among its "
                f"properties, but got {sorted(properties)}. Set `text_parameter`."
            )
        self._text_parameter = spec.text_parameter
        # An empty registry: nothing that a schema refers to is ever fetched.
        self._validator = Draft202012Validator(spec.parameters, registry=Registry())
        text_schema = properties.get(spec.text_parameter, {})
        # Text between tags then fits whatever it is.
        self._takes_any_text = (
            text_schema.get("type") == "string"
            and set(text_schema) <= {"type", "title", "description"}
            and set(spec.parameters.get("required", ())) <= {spec.text_parameter}
        )

    def __call__(self, call: ToolCall) -> Mapping[str, Any]:
        """Return the arguments of a call: named ones, or its text as the text parameter.

        Raises:
            BadArgumentsError: If they do not fit the schema.
        """
        arguments = call.arguments
        if arguments is None:
            arguments = {self._text_parameter: call.text} if self._text_parameter else {}
            if self._takes_any_text:
                return arguments
        try:
            error = best_match(self._validator.iter_errors(dict(arguments)))
        except Unresolvable as missing:
            raise BadArgumentsError(f"the schema of the tool refers to {missing.ref!r}, which is not there.") from None
        if error is not None:
            raise BadArgumentsError(_explain(error))
        return arguments


def _explain(error: ValidationError) -> str:
    place = ".".join(map(str, error.absolute_path))
    text = error.message if len(error.message) <= _MAX_QUOTED else f"{error.message[:_MAX_QUOTED]}..."
    return f"{place}: {text}" if place else text


def ran(name: str, history: Sequence[tuple[ToolCall, ToolResult]]) -> list[ToolCall]:
    """Return the calls to a tool that its state has seen, or would have to see."""
    return [call for call, result in history if call.tool == name and result.status in RAN]


def call_key(spec: ToolSpec, arguments: Mapping[str, Any], context: ToolContext) -> str:
    """Return a digest that two calls share if and only if their answers are the same.

    It holds the tool and its version, the arguments, the question where the answer depends on it, and the calls before
    this one that the tool remembers, if it does.
    """
    parts: list[Any] = [spec.name, spec.version, arguments]
    parts.append(_identity(context.question) if spec.is_question_bound else None)
    if spec.state is not ToolState.STATELESS:
        parts.append([[call.text, call.arguments] for call in ran(spec.name, context.history)])
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=repr)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _identity(question: Question) -> list[Any]:
    """Return what tells a question from all others: ids are unique within a run only, and runs share caches."""
    messages = [[message.role, message.content] for message in question.messages]
    return [question.question_id, messages, sorted(question.documents.items())]
