"""What a check says, and how checks are run: one after the other, each failure a line."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from typing_extensions import override

from aepo_lightning.contracts.blame import describe_failure
from aepo_lightning.errors import AepoError, boundary

SubjectT = TypeVar("SubjectT")


class Level(StrEnum):
    """How it stands with what was looked at."""

    PASS = "pass"
    WARN = "warn"
    """A run starts, but may not do what was meant."""
    FAIL = "fail"
    """A run would not start, or not do what was meant."""
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A line of the report."""

    level: Level
    line: str
    remedy: str = ""
    """What to do, where the line does not say it."""
    about: str = ""
    """Which of several things of one check, such as a tool."""


def passed(line: str, about: str = "") -> Finding:
    """Return that all is well."""
    return Finding(level=Level.PASS, line=line, about=about)


def warned(line: str, remedy: str = "", about: str = "") -> Finding:
    """Return that something is in doubt."""
    return Finding(level=Level.WARN, line=line, remedy=remedy, about=about)


def failed(line: str, remedy: str = "", about: str = "") -> Finding:
    """Return that something is wrong."""
    return Finding(level=Level.FAIL, line=line, remedy=remedy, about=about)


def skipped(line: str, about: str = "") -> Finding:
    """Return that nothing was looked at, and why."""
    return Finding(level=Level.SKIPPED, line=line, about=about)


class NothingToLookAt(Exception):  # noqa: N818 -- it is no error
    """A check cannot look: what it needs is not there, and whoever asked for it first has said why."""


@dataclass(frozen=True, slots=True)
class Check(Generic[SubjectT]):
    """One thing to look at."""

    name: str
    look: Callable[[SubjectT], Iterable[Finding]]


def examine(checks: Sequence[Check[SubjectT]], subject: SubjectT) -> Iterator[tuple[str, Finding]]:
    """Run checks and yield the name of each thing with what was found, as soon as it is known.

    What the library warns of while a check looks is a warning of that check. An exception is a failure: of this library
    with its own words, of a user's part with its name.
    """
    for check in checks:
        with _warnings_of_the_library() as said:
            found = list(safely(partial(check.look, subject)))
        for finding in (*found, *(warned(line) for line in dict.fromkeys(said))):
            yield f"{check.name} {finding.about}".rstrip(), finding


def safely(look: Callable[[], Iterable[Finding]], about: str = "") -> Iterator[Finding]:
    """Yield what is found; an exception is one more finding, so that what is looked at next does not suffer from it.

    Args:
        look: Looks at one thing.
        about: Which of several things of one check it is.
    """
    failures: list[Exception] = []
    with boundary(failures.append):
        yield from look()
    for error in failures:
        if isinstance(error, NothingToLookAt):
            yield skipped(str(error), about)
        else:
            line = " ".join(str(error).split()) if isinstance(error, AepoError) else _unexpected(error)
            yield failed(line, about=about)


def _unexpected(error: Exception) -> str:
    return f"It must not raise, but: {' '.join(describe_failure(error).split())[:400]}. Mend what it names."


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextmanager
def _warnings_of_the_library() -> Iterator[list[str]]:
    """Yield a list that gets what this library warns of meanwhile, which goes nowhere else."""
    logger, kept = logging.getLogger("aepo_lightning"), _Kept()
    propagates = logger.propagate
    logger.addHandler(kept)
    logger.propagate = False
    try:
        yield kept.lines
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagates
