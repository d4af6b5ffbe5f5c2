"""Names for what a user wrote: which part it is, and where in its code it failed."""

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from aepo_lightning.errors import AepoError, TrainingError, boundary

Answer = TypeVar("Answer")

OWN_PACKAGE = "aepo_lightning"


def part_name(part: object) -> str:
    """Return the name of a function, or of the class of an object, with its module: what its author knows it by."""
    while isinstance(part, partial):
        part = part.func
    function = getattr(part, "function", None)  # what wraps a function is known by that
    if callable(function) and not isinstance(part, type):
        return part_name(function)
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{getattr(named, '__qualname__', type(named).__name__)}"


def is_own(part: object) -> bool:
    """Return whether a part comes with this library, and not from a user."""
    return part_name(part).partition(".")[0] == OWN_PACKAGE


def describe_failure(error: BaseException) -> str:
    """Return kind and message of an exception, and the line that raised it, also in another process (`raised_at`)."""
    frames = traceback.extract_tb(error.__traceback__)
    here = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    where = getattr(error, "raised_at", None) or here
    failures: list[Exception] = []
    message = "it cannot say what it is"
    with boundary(failures.append):
        message = str(error)
    return f"{type(error).__name__}: {message}" + (f" ({where})" if where else "")


def call_part(kind: str, part: object, call: Callable[[], Answer]) -> Answer:
    """Return what `call` returns, and name the part if it raises.

    Args:
        kind: What the part is, such as `objective`.
        part: What is called.
        call: Calls it.

    Raises:
        TrainingError: If it raises anything but an error of this library, which passes as it is.
    """
    failures: list[Exception] = []
    answers: list[Answer] = []
    with boundary(failures.append):
        answers.append(call())
    if not failures:
        return answers[0]
    if isinstance(failures[0], AepoError):
        raise failures[0]
    raise TrainingError(
        f"The {kind} `{part_name(part)}` must not fail, but it raised {describe_failure(failures[0])}."
    ) from failures[0]
