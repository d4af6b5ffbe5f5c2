"""What a pool gives: how an execution ended, and how well it was walled in."""

from dataclasses import dataclass
from enum import StrEnum

from aepo_lightning.errors import ConfigError, ToolUnavailableError


class PoolBusyError(ToolUnavailableError):
    """Too many calls wait already; this one was not started."""


class PoolUnavailableError(ToolUnavailableError):
    """No worker is left, and none can be started at the moment. The pool goes on trying."""


class SandboxUnavailableError(ConfigError):
    """No isolation for model-written Python can be had here; the message says what to install or to set."""


class ExitKind(StrEnum):
    """How an execution ended."""

    OK = "ok"
    """By itself, with exit code 0."""
    ERROR = "error"
    """By an exception or another exit code; `stderr` ends with the reason."""
    TIMEOUT = "timeout"
    """Stopped at its deadline."""
    MEMORY = "memory"
    """By a `MemoryError` at the memory limit."""
    OUTPUT = "output"
    """Stopped because it wrote more than the limit."""
    FILES = "files"
    """Stopped because it made more files than the limit."""
    KILLED = "killed"
    """By a signal, such as a segmentation fault."""
    LOST = "lost"
    """The sandbox itself failed; this says nothing about the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What one call did."""

    stdout: str
    """Standard output up to the limit; bytes that are no UTF-8 are replaced."""
    stderr: str
    """Standard error up to the limit: warnings and the traceback."""
    exit: ExitKind
    """How it ended."""
    exit_code: int | None
    """Exit code, minus the signal number if a signal ended it, or None if it was lost."""
    duration_s: float
    """Seconds that the code ran."""
    queue_s: float
    """Seconds that the call waited for a worker before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How calls are kept away from the host."""

    level: str
    """`jail`, `remote` or `none`."""
    description: str
    """One line for the log: which walls stand, and whether they were tried."""
