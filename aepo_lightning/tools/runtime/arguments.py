"""What a call means to a tool: its arguments, checked, and the key under which equal calls are the same."""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolSpec, ToolState, ToolStatus
from aepo_lightning.errors import ConfigError, ToolUnavailableError, boundary
from aepo_lightning.processes.calls import ProcessCalls
from aepo_lightning.tools.process_errors import process_errors
from aepo_lightning.tools.runtime.schema_check import is_tame, problem_by_text, problem_of, validator_of

_CHECK_S = 5.0
"""How long a process may take to check the arguments of one call."""
_MAX_DEPTH = 64
_MAX_PARTS = 100_000
_MAX_PARTS_HERE = 5000
_MAX_INTEGER_BITS = 14_000  # about the 4,300 digits that Python reads and writes
_CHECKER = ProcessCalls(problem_by_text)
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
        _check_schema(spec)
        properties = spec.parameters.get("properties", {})
        self._text_parameter = spec.text_parameter
        self._is_tame = is_tame(spec.parameters)
        self._validator = validator_of(spec.parameters)
        text_schema = properties.get(spec.text_parameter, {})
        # Text between tags then fits whatever it is.
        self._takes_any_text = (
            text_schema.get("type") == "string"
            and set(text_schema) <= {"type", "title", "description"}
            and set(spec.parameters.get("required", ())) <= {spec.text_parameter}
        )

    async def read(self, call: ToolCall) -> Mapping[str, Any]:
        """Return the arguments of a call: named ones, or its text as the text parameter.

        Where the schema or the length of the arguments could hold the event loop up, a process checks them, within
        a few seconds.

        Raises:
            BadArgumentsError: If they do not fit the schema, or that cannot be found out.
            ToolUnavailableError: If no process can be started to check them.
        """
        arguments = call.arguments
        if arguments is None:
            arguments = {self._text_parameter: call.text} if self._text_parameter else {}
            if self._takes_any_text:
                return arguments
        is_short = _measure(arguments) <= _MAX_PARTS_HERE
        failures: list[Exception] = []
        problem = ""
        with boundary(failures.append):
            if self._is_tame and is_short:
                problem = problem_of(self._validator, arguments)
            else:
                problem = await self._problem_apart(arguments)
        if failures and isinstance(failures[0], ToolUnavailableError | BadArgumentsError):
            raise failures[0]
        if failures:
            raise BadArgumentsError(f"they cannot be checked ({type(failures[0]).__name__}).")
        if problem:
            raise BadArgumentsError(problem)
        return arguments

    async def _problem_apart(self, arguments: Mapping[str, Any]) -> str:
        schema = json.dumps(self._validator.schema, default=dict)
        try:
            with process_errors():
                await _CHECKER.prepare()
                async with asyncio.timeout(_CHECK_S):
                    return await _CHECKER.text({"schema": schema, "arguments": dict(arguments)})
        except TimeoutError:
            raise BadArgumentsError(f"they cannot be checked within {_CHECK_S:g} s.") from None


def _check_schema(spec: ToolSpec) -> None:
    try:
        Draft202012Validator.check_schema(spec.parameters)
    except (SchemaError, ValueError, ArithmeticError, RecursionError) as error:  # the last three by its patterns
        reason = error.message if isinstance(error, SchemaError) else str(error)
        raise ConfigError(f"`parameters` of {spec.name!r} must be a JSON schema, but: {reason}.") from None
    properties = spec.parameters.get("properties", {})
    names = {"", *properties} if not properties else set(properties)
    if spec.parameters.get("type") != "object" or spec.text_parameter not in names:
        raise ConfigError(
            f"`parameters` of {spec.name!r} must describe an object with {spec.text_parameter!r} among its "
            f"properties, but got {sorted(properties)}. Set `text_parameter`."
        )


def _measure(arguments: object) -> int:
    """Return how many values there are, one within another.

    Raises:
        BadArgumentsError: If it is no object, holds what JSON has no word for, or is nested too deeply or too long.
    """
    if not isinstance(arguments, Mapping):
        raise BadArgumentsError(f"they must be an object with a value for each name, not {type(arguments).__name__}.")
    inside, num_parts = [arguments], 0
    for _ in range(_MAX_DEPTH):
        num_parts += len(inside)
        if num_parts > _MAX_PARTS:
            raise BadArgumentsError(f"they have more than {_MAX_PARTS} values.")
        inside = [each for outer in inside for each in _members(outer)]
        if not inside:
            return num_parts
    raise BadArgumentsError(f"they are nested more than {_MAX_DEPTH} deep.")


def _members(value: object) -> Sequence[Any]:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadArgumentsError(f"{value} is no number of JSON.")
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise BadArgumentsError("a number has thousands of digits.")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise BadArgumentsError("names must be text.")
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()


def ran(name: str, history: Sequence[tuple[ToolCall, ToolResult]]) -> list[ToolCall]:
    """Return the calls to a tool that its state has seen, or would have to see."""
    return [call for call, result in history if call.tool == name and result.status in RAN]


def call_key(spec: ToolSpec, arguments: Mapping[str, Any], context: ToolContext) -> str:
    """Return a digest that two calls share if and only if their answers are the same.

    It holds the tool and its version, the arguments, question and history where the answer depends on them, and the
    calls before this one that the tool remembers, if it does.
    """
    parts: list[Any] = [spec.name, spec.version, arguments]
    parts.append(_identity(context.question) if spec.is_question_bound else None)
    if spec.is_history_bound:
        said = [[call.tool, call.text, call.arguments, result.status, result.text] for call, result in context.history]
        parts.append([context.call_index, said])
    if spec.state is not ToolState.STATELESS:
        parts.append([[call.text, call.arguments] for call in ran(spec.name, context.history)])
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=repr)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _identity(question: Question) -> list[Any]:
    """Return what tells a question from all others: ids are unique within a run only, and runs share caches."""
    messages = [[message.role, message.content] for message in question.messages]
    return [question.question_id, messages, sorted(question.documents.items()), question.answers, question.metadata]
