"""Arguments that fit a tool's JSON schema, made up to try the way of a call."""

from collections.abc import Mapping
from typing import Any

from aepo_lightning.contracts.tool import ToolSpec

_MAX_DEPTH = 4
_PLAIN: Mapping[str, Any] = {"integer": 2, "number": 2.5, "boolean": True, "null": None}


def synthetic_arguments(spec: ToolSpec, word: str) -> dict[str, Any]:
    """Return arguments for each parameter of a tool.

    Args:
        spec: Its `parameters` say what fits; a rule beyond types, choices and bounds may be missed.
        word: What texts say.
    """
    properties = spec.parameters.get("properties", {})
    return {name: _value(schema, word, 0) for name, schema in properties.items()}


def _value(schema: Any, word: str, depth: int) -> Any:
    if not isinstance(schema, Mapping):
        return word
    for key in ("const", "default"):
        if schema.get(key) is not None:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _value(schema[key][0], word, depth + 1)
    kinds = schema.get("type", "string")
    kind = kinds if isinstance(kinds, str) else next(iter(kinds), "string")
    return _of_kind(kind, schema, word, depth)


def _of_kind(kind: str, schema: Mapping[str, Any], word: str, depth: int) -> Any:
    if kind == "object":
        inner = schema.get("properties", {}) if depth < _MAX_DEPTH else {}
        return {name: _value(each, word, depth + 1) for name, each in inner.items()}
    if kind == "array":
        count = max(1, schema.get("minItems", 1)) if depth < _MAX_DEPTH else 0
        return [_value(schema.get("items", {}), word, depth + 1)] * min(count, 8)
    if kind in ("integer", "number"):
        least, most = schema.get("minimum"), schema.get("maximum")
        return least if least is not None else _PLAIN[kind] if most is None else min(most, _PLAIN[kind])
    return _PLAIN.get(kind, word) if kind != "string" else word.ljust(schema.get("minLength", 0), "a")
