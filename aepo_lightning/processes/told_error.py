"""Errors of another process, made again from what it tells: only names and texts are taken from there."""

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from aepo_lightning import errors


def told_error(told: Mapping[str, Any]) -> Exception:
    """Return an error with the names and the message of one that was raised elsewhere.

    Args:
        told: As `describe_error` of the other side writes it. Of the classes named there, those of Python and of this
            library are the real ones; the others are made with their names alone.

    Returns:
        An error that also has the line (`raised_at`) and the pause (`retry_after_s`) that were told, or None.
    """
    names = [str(name) for name in told["names"]]
    base, rest = _known_base(names)

    def spell(_: Exception) -> str:
        return str(told["message"])

    kind = base
    for name in reversed(rest or names[:1]):
        kind = type(name, (kind,), {"__str__": spell})
    error = kind.__new__(kind)  # their constructors ask for arguments that nobody knows
    for name in ("retry_after_s", "raised_at"):
        setattr(error, name, told.get(name))
    return error


def _known_base(names: Sequence[str]) -> tuple[type[Exception], Sequence[str]]:
    """Return the nearest class that is here as well, and the names before it."""
    for place, name in enumerate(names):
        for home in (errors, builtins):
            known = getattr(home, name, None)
            if isinstance(known, type) and issubclass(known, Exception):
                return known, names[:place]
    return Exception, names[:1]
