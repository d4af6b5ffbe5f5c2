"""JSON that a policy wrote."""

import json
from collections.abc import Iterable
from typing import Any

_MAX_DEPTH = 64
"""Of lists and objects inside one another. Python gives up at some hundreds, in places that no call can foresee."""


def load_json(text: str) -> Any:
    """Read JSON that this process can also write, compare and show.

    Raises:
        ValueError: If it is none, or nested too deeply, or holds a number with thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        raise ValueError("it holds a number that is too long") from None
    inside = [value]
    for _ in range(_MAX_DEPTH):
        inside = [each for outer in inside if isinstance(outer, dict | list) for each in _members(outer)]
        if not inside:
            return value
    raise ValueError("it is nested too deeply")


def _members(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
