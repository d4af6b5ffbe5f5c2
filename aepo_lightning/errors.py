"""Exceptions of this library: one child of `AepoError` for each boundary.

    AepoError
    |-- ConfigError     a setting that cannot work, with the rule and what to do
    |-- DataError       a row of a file that cannot be read, with file, row and field
    |-- EngineError     the generator of tokens failed or was misused
    |-- ToolError       a tool failed; the runtime turns it into an observation for the model
    |   |-- ToolUnavailableError    what stands behind the tool failed; another attempt may succeed
    |   `-- ToolTimeoutError        a tool stopped the program of a call because it took too long
    |-- ToolOutageError a tool has been unavailable for so long that the run stops
    |-- RewardError     a reward could not be computed
    |-- CallbackError   a callback of a user failed
    `-- TrainingError   the update phase met something it must not train on, such as a non-finite loss

Each child also inherits the builtin it specialises, so that callers may catch either. What a constructor refuses is a
`ConfigError`, in every room; what a call refuses in the data that it is given is a plain `ValueError`. A tool call that
fails and a budget that is spent are data (`ToolStatus`, `StopReason`), not exceptions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import Signals


class AepoError(Exception):
    """Root of every exception that this library raises on purpose."""


class ConfigError(AepoError, ValueError):
    """A setting or a combination of settings that cannot work."""


class DataError(AepoError, ValueError):
    """A data file, row or field that cannot be read."""


class EngineError(AepoError, RuntimeError):
    """An engine that failed or was asked for something it cannot do."""


class ToolError(AepoError, RuntimeError):
    """A tool that failed. Its message is shown to the model, so it must be short and honest."""


class ToolUnavailableError(ToolError):
    """The provider, server or sandbox behind a tool failed; the call itself may be fine."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """Keep the message.

        Args:
            message: What the model reads.
            retry_after_s: How long the other side asked to wait. None if it did not say.
        """
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ToolTimeoutError(ToolError, TimeoutError):
    """A tool stopped the program of a call because it took too long: the call asked for too much.

    The runtime reports it as a time-out of the program, any other `TimeoutError` as one of what stands behind the tool.
    """


class ToolOutageError(AepoError, RuntimeError):
    """A tool that has been unavailable for too long: the run stops rather than go on without it."""


class RewardError(AepoError, RuntimeError):
    """A reward that could not be computed."""


class CallbackError(AepoError, RuntimeError):
    """A callback of a user that failed."""


class TrainingError(AepoError, RuntimeError):
    """An update that must not be applied."""


SIGNAL_STATUS = 128
"""What shells add to the number of the signal that ended a process."""


class SignalExit(SystemExit):
    """The process was told to end by a signal. It passes every seam behind which foreign code runs."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(SIGNAL_STATUS + number)
        self.number = number

    def __str__(self) -> str:
        return f"told to end by {Signals(self.number).name}"


@contextmanager
def boundary(on_error: Callable[[Exception], None]) -> Iterator[None]:
    """Turn any exception of foreign code (a user's tool) into data through `on_error`.

    The one place of this library where a broad `except` may stand. Cancellation and interrupts pass through.

    Args:
        on_error: Receives the exception; what it does with it is the caller's business.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        on_error(error)
