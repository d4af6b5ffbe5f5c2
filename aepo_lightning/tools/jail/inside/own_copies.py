"""Modules and builtins that code cannot replace under its runner's feet.

The code of a session runs in the process of its runner, and may put something else in the place of any function that
it can name: `os.dup2`, `builtins.len`, `traceback.print_exception`. So the runner keeps references that it took before,
and copies of those modules that look their own parts up by name while they work.
"""

import builtins
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

BUILTINS: dict[str, Any] = dict(vars(builtins))
"""What functions of copied modules find as their builtins."""
globals()["__builtins__"] = BUILTINS  # of all functions below, too


def own_copy(name: str, **replaced: ModuleType) -> ModuleType:
    """Load a module of pure Python once more, for the caller alone.

    Args:
        name: Of the module.
        **replaced: What stands in the copy instead of what it imports.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None, "it belongs to the standard library or to this one"
    assert spec.loader is not None, "it has a source"
    module = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = BUILTINS
    spec.loader.exec_module(module)
    vars(module).update(replaced)
    return module


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns, or None: what code has broken on purpose is its own loss, not the runner's."""
    try:
        return call(*arguments)
    except BaseException:  # noqa: BLE001 - also an exit or an interrupt that code has put there
        return None
