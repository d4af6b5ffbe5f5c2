"""Whether arguments fit a JSON schema. It runs in a process of its own where a schema can make that take for ever."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

_MAX_QUOTED = 100
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "format"})
_BOUNDS = frozenset(
    {"type", "required", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength"}
    | {"maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
_MAX_CHOICES = 1000


def validator_of(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Return what checks arguments. Its registry is empty: nothing that a schema refers to is ever fetched."""
    return Draft202012Validator(schema, registry=Registry())


def problem_of(validator: Draft202012Validator, arguments: Mapping[str, Any]) -> str:
    """Return what does not fit, for the model; empty if all does."""
    try:
        error = best_match(validator.iter_errors(dict(arguments)))
    except Unresolvable as missing:
        return f"the schema of the tool refers to {missing.ref!r}, which is not there."
    return "" if error is None else _explain(error)


@lru_cache(maxsize=256)
def _known_validator(schema: str) -> Draft202012Validator:
    return validator_of(json.loads(schema))


def problem_by_text(schema: str, arguments: Mapping[str, Any]) -> str:
    """Do what `problem_of` does for a schema in JSON."""
    return problem_of(_known_validator(schema), arguments)


def _explain(error: ValidationError) -> str:
    place = ".".join(map(str, error.absolute_path))
    text = error.message if len(error.message) <= _MAX_QUOTED else f"{error.message[:_MAX_QUOTED]}..."
    return f"{place}: {text}" if place else text


def is_tame(schema: Any) -> bool:
    """Return whether checking takes no longer than the schema is long, for each piece of the arguments.

    References may lead in circles, patterns may backtrack, `uniqueItems` compares all with all, `multipleOf` divides
    numbers of any length; whatever is not known here counts as untame as well.
    """
    if isinstance(schema, bool):
        return True
    if not isinstance(schema, Mapping):
        return False
    return all(_is_tame_part(key, value) for key, value in schema.items())


def _is_tame_part(key: str, value: Any) -> bool:
    if key == "properties":
        return isinstance(value, Mapping) and all(map(is_tame, value.values()))
    if key in ("anyOf", "oneOf", "allOf"):
        return isinstance(value, list) and all(map(is_tame, value))
    if key in ("items", "additionalProperties"):
        return is_tame(value)
    if key == "enum":
        return len(value) <= _MAX_CHOICES
    return key in _ANNOTATIONS | _BOUNDS
