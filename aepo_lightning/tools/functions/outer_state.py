"""Whether a function leaves something behind for others to see, which a process of its own would lose."""

import dis
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

_CONTAINERS = (list, dict, set, bytearray, deque, defaultdict, OrderedDict, Counter)
_ASSIGNS = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_CHANGES = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR"})
_CHANGING_METHODS = frozenset(
    {"add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popitem", "popleft"}
    | {"remove", "reverse", "setdefault", "sort", "subtract", "update"}
)


def outer_state(function: Callable[..., Any]) -> str | None:
    """Return the outer name that a function changes as far as its code shows it, or None.

    That is a `global` or `nonlocal` name that it assigns, and a list, dict or the like around it, if the function
    assigns items or calls a method such as `append` at all.
    """
    if not isinstance(function, types.FunctionType):
        return None
    codes = list(_codes(function.__code__))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    instructions = [each for code in codes for each in dis.get_instructions(code)]
    for each in instructions:
        if each.opname in _ASSIGNS or (each.opname == "STORE_DEREF" and each.argval in cells):
            return str(each.argval)
    names = {name for code in codes for name in code.co_names}
    if not (names & _CHANGING_METHODS or any(each.opname in _CHANGES for each in instructions)):
        return None
    around = {name: _content(cell) for name, cell in cells.items()}
    around |= {name: function.__globals__[name] for name in names if name in function.__globals__}
    return next((name for name, value in around.items() if isinstance(value, _CONTAINERS)), None)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
