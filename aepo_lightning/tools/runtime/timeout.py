"""The failure of a tool that keeps its own deadline."""

from aepo_lightning.errors import ToolError


class ToolTimeoutError(ToolError, TimeoutError):
    """A tool stopped its own work because it took too long. The runtime reports it as a time-out, not as an error."""
