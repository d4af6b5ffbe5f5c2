"""What goes wrong with processes; what the functions in them raise comes back as it was."""


class ProcessError(Exception):
    """A call that a process did not answer. Families name what called; the message says why."""


class CannotSendError(ProcessError):
    """A function cannot be called in another process."""


class NoProcessError(ProcessError):
    """No process can be started."""


class BrokenCallError(ProcessError):
    """Arguments or answer of one call cannot be sent, or its process ended."""
