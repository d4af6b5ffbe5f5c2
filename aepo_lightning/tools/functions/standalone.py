"""The source of a function with all that it refers to, for a place where nothing of this process is."""

import ast
import builtins
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from aepo_lightning.errors import ConfigError


def standalone_source(function: Callable[..., Any], name: str) -> str:
    """Return a program that defines a function under its own name.

    It imports the modules that the function refers to, repeats functions of the same module, and writes constants out.

    Args:
        function: One that was written with `def`.
        name: Of the tool, for messages.

    Raises:
        ConfigError: If it has no source or refers to something that cannot be written down.
    """
    pieces: dict[str, str] = {}
    _define(function, name, pieces)
    return "\n".join(["from __future__ import annotations", *pieces.values()])


def _define(function: Callable[..., Any], name: str, pieces: dict[str, str]) -> None:
    plain = inspect.unwrap(function)
    definition = _definition(plain, name)
    pieces[definition.name] = ""  # it may refer to itself
    around = {**plain.__globals__, **inspect.getclosurevars(plain).nonlocals}
    for each in ast.walk(definition):
        if isinstance(each, ast.Name) and each.id in around and each.id not in pieces:
            _write(each.id, around[each.id], plain, name, pieces)
    del pieces[definition.name]  # after what its defaults need
    pieces[definition.name] = ast.unparse(definition)


def _definition(function: Any, name: str) -> ast.FunctionDef:
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        found = None
    if not isinstance(found, ast.FunctionDef):
        raise _refusal(name, "it was not written with `def`, or its source is not there")
    found.decorator_list, found.returns = [], None
    for each in ast.walk(found):
        if isinstance(each, ast.arg):
            each.annotation = None  # of no use there, and they may name anything
    return found


def _write(key: str, value: Any, function: Any, name: str, pieces: dict[str, str]) -> None:
    if isinstance(value, types.ModuleType):
        pieces[key] = f"import {value.__name__} as {key}"
    elif isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
        _define(value, name, pieces)
        if value.__name__ != key:
            pieces[key] = f"{key} = {value.__name__}"
    elif _is_importable(value):
        pieces[key] = f"from {value.__module__} import {value.__qualname__} as {key}"
    elif _is_plain(value):
        pieces[key] = f"{key} = {value!r}"
    elif getattr(builtins, key, None) is not value:
        raise _refusal(name, f"it refers to {key!r}, which is {type(value).__name__}")


def _is_importable(value: Any) -> bool:
    module, place = getattr(value, "__module__", None), getattr(value, "__qualname__", ".")
    return isinstance(module, str) and module not in ("__main__", "builtins") and place.isidentifier()


def _is_plain(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False


def _refusal(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"Tool({name}) must stand on its own for isolation=jail, but {reason}. Import and define what it needs inside "
        "of it, or set isolation=process."
    )
