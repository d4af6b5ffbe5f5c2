"""The JSON schema of a function, from its name, type hints and docstring."""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from aepo_lightning.errors import ConfigError

_JSON_TYPES = (str, int, float, bool, list, dict, tuple, NoneType, UnionType)
_UNDESCRIBED = "(undescribed)"


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return name, description and parameters of a function, a parameter named `context` left out.

    Raises:
        ConfigError: If a parameter has no type hint, the function has no docstring, or an `Args:` section leaves a
            parameter out.
    """
    name = getattr(function, "__name__", None)
    if name is None:
        raise ConfigError(f"A tool must be a function, but got {function!r}. Write a function that calls it.")
    try:
        visible = _visible(function)
        schema: dict[str, Any] = get_json_schema(visible)["function"]
    except (DocstringParsingException, TypeHintParsingException, ValueError, TypeError, NameError) as error:
        raise ConfigError(
            f"{name!r} must have a docstring and a type hint for each parameter to be a tool, and an `Args:` section, "
            f"if there is one, must have a line for each, but: {error}"
        ) from None
    if not schema["parameters"].get("properties"):
        raise ConfigError(f"{name!r} must have a parameter to be a tool, but has none.")
    for each in schema["parameters"]["properties"].values():
        if each["description"] == _UNDESCRIBED:
            del each["description"]
    schema["parameters"] = _with_null(schema["parameters"])
    return schema


def _visible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return something with the function's name, docstring and parameters, except `context`.

    Raises:
        TypeError: If the function yields, or has a parameter that JSON has no value for or that has no name.
    """

    def visible() -> None: ...

    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("it yields. Return the whole answer.")
    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "context"]
    for parameter in kept:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{parameter} is {parameter.kind.description}, and arguments come by name.")
    # A hint of `context` may be an import for type checkers only, so it is not looked at.
    plain = inspect.unwrap(function)
    hints = {key: hint for key, hint in function.__annotations__.items() if key not in ("context", "return")}
    holder = type("Hints", (), {"__annotations__": hints})
    visible.__annotations__ = get_type_hints(holder, getattr(plain, "__globals__", {}))
    for key, hint in visible.__annotations__.items():
        _check_hint(key, hint)
    visible.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each.replace(annotation=hints.get(each.name, each.empty)) for each in kept]
    )
    visible.__name__, visible.__doc__ = function.__name__, _with_args_section(function.__doc__, [*hints])
    return visible


def _with_args_section(docstring: str | None, names: Sequence[str]) -> str | None:
    """Return a docstring in which each parameter has a line, as the parser wants it, unless it has such a section."""
    if not docstring or "Args:" in docstring:
        return docstring
    return "\n".join([inspect.cleandoc(docstring), "", "Args:", *(f"    {name}: {_UNDESCRIBED}" for name in names)])


def _check_hint(name: str, hint: Any) -> None:
    if get_origin(hint) is Literal:
        return
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and kind not in _JSON_TYPES:
        raise TypeError(
            f"`{name}` is {kind.__name__}, which JSON has no value for. Take text or a dict, and convert it."
        )
    for part in get_args(hint):
        _check_hint(name, part)


def _with_null(schema: Any) -> Any:
    """Say in JSON schema what `nullable` says in another dialect: `Optional` parameters take null."""
    if isinstance(schema, list):
        return [_with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _with_null(value) for key, value in schema.items() if key != "nullable" or value is not True}
    if len(plain) < len(schema):
        kinds = plain.get("type", [])
        if "type" in plain:
            plain["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
        if "enum" in plain:
            plain["enum"] = [*plain["enum"], None]
    return plain
