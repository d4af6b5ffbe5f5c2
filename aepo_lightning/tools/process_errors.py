"""What goes wrong with worker processes, as errors of the tool that needs one."""

from collections.abc import Iterator
from contextlib import contextmanager

from aepo_lightning.errors import ToolError, ToolUnavailableError
from aepo_lightning.processes.errors import BrokenCallError, NoProcessError


@contextmanager
def process_errors() -> Iterator[None]:
    """Say for the tool what went wrong. That its function cannot be sent is not an error of one call, and passes.

    Raises:
        ToolUnavailableError: If no process can be started.
        ToolError: If a call and its process did not come through.
    """
    try:
        yield
    except NoProcessError as error:
        raise ToolUnavailableError(str(error)) from None
    except BrokenCallError as error:
        raise ToolError(str(error)) from None
