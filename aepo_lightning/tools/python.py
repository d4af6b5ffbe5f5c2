"""Runs model-written Python with resource limits. It is not a sandbox."""

import asyncio
import inspect
import math
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from aepo_lightning.errors import ToolError
from aepo_lightning.tool_spec import ToolLimits, ToolSpec
from aepo_lightning.tools import python_child
from aepo_lightning.tools.child_process import ChildProcess
from aepo_lightning.tools.timeout import ToolTimeoutError
from aepo_lightning.types import ToolContext

_CHILD_SOURCE = inspect.getsource(python_child)
_MIN_OUTPUT_CHARS = 200
_MIN_CAPTURE_BYTES = 1 << 16  # room for a whole traceback, of which the end is shown
_MAX_BYTES_PER_CHAR = 4  # UTF-8
_MAX_TRACEBACK_LINES = 10
_SIGNAL_EXIT_BASE = 128
PYTHON_DESCRIPTION = "Run Python code and read what it prints. The value of a last expression is printed."
CODE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "The program."}},
    "required": ["code"],
}
"""Schema of tools that take a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTool:
    """Run each call in a fresh Python interpreter with limits on time, memory, file size and output.

    **This is resource limits, NOT a security sandbox.** The code runs as the user of this process: it can read and
    write that user's files, use the network and signal other processes. What it gets is an environment without the
    variables of this process, a temporary working directory that is removed afterwards, and limits that stop accidents
    such as endless loops, memory bombs and floods of output. For code you do not trust, put the whole trainer into a
    container or use a tool that talks to a real sandbox.

    When a call ends, for whatever reason, the interpreter, its process group and (on Linux) every other process it
    started are killed and reaped. Needs a POSIX system.

    Attributes:
        name: The tag of the tool.
        timeout_s: Seconds of wall time for one call, interpreter start included. A call that takes longer raises
            `ToolTimeoutError`, which the runtime reports as a time-out; keep it below the deadline of the runtime.
        memory_mb: Address space of each process in MiB.
        max_output_chars: Longest answer. Longer output is cut and ends with a note inside this limit; a flood ends the
            program at once.
        limits: What a call may cost the runtime.

    Raises:
        ValueError: If a limit is too small to run anything.

    References:
        Echo of the last expression and "standard output or the error" follow the official tool of arXiv:2510.14545.
    """

    name: str = "python"
    timeout_s: float = 10.0
    memory_mb: int = 512
    max_output_chars: int = 4000
    limits: ToolLimits = field(default_factory=ToolLimits)

    def __post_init__(self) -> None:
        """Refuse limits under which nothing runs."""
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"`timeout_s` must be positive and finite, but got {self.timeout_s}. Give seconds.")
        if self.memory_mb < 64:
            raise ValueError(
                f"`memory_mb` must be at least 64, but got {self.memory_mb}. Python alone needs that much."
            )
        if self.max_output_chars < _MIN_OUTPUT_CHARS:
            raise ValueError(
                f"`max_output_chars` must be at least {_MIN_OUTPUT_CHARS}, but got {self.max_output_chars}. Raise it."
            )

    @property
    def spec(self) -> ToolSpec:
        """Name and schema: the code."""
        return ToolSpec(
            name=self.name,
            description=PYTHON_DESCRIPTION,
            parameters=CODE_SCHEMA,
            text_parameter="code",
            limits=self.limits,
        )

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:  # noqa: ARG002 - same for all
        """Run code and return what it printed.

        Args:
            arguments: The `code`. If its last statement is an expression and not a call of `print`, it is printed.
            context: Not used.

        Returns:
            Standard output, stripped; empty if the code printed nothing.

        Raises:
            ToolTimeoutError: If the code did not end in time.
            ToolError: If the code failed, with the last lines of its standard error, or flooded standard error.
        """
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as source:
            source.write(str(arguments["code"]).encode("utf-8", "replace"))
            source.seek(0)
            child = await self._run(folder, source)
        return self._answer(child)

    async def _run(self, folder: str, source: IO[bytes]) -> ChildProcess:
        cpu_s = math.ceil(self.timeout_s) + 1
        child = ChildProcess(
            [sys.executable, "-I", "-X", "utf8", "-c", _CHILD_SOURCE, str(self.memory_mb), str(cpu_s)],
            folder=folder,
            stdin=source,
            max_output_bytes=max(_MIN_CAPTURE_BYTES, _MAX_BYTES_PER_CHAR * self.max_output_chars),
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                await child.wait()
        except TimeoutError:
            raise ToolTimeoutError(f"The code did not end within {self.timeout_s:g} s and was stopped.") from None
        finally:
            await child.close()
        return child

    def _answer(self, child: ChildProcess) -> str:
        if child.is_stderr_flooded:
            raise ToolError("The code wrote too much to standard error and was stopped.")
        if child.exit_code != 0 and not child.is_stdout_flooded:
            raise ToolError(self._last_lines(child.stderr) or _describe_exit(child.exit_code))
        text = child.stdout.decode("utf-8", "replace").strip()
        if len(text) <= self.max_output_chars and not child.is_stdout_flooded:
            return text
        note = "\n[output cut: the code printed too much" + (" and was stopped]" if child.is_stdout_flooded else "]")
        return text[: self.max_output_chars - len(note)] + note

    def _last_lines(self, stderr: bytes) -> str:
        lines = stderr.decode("utf-8", "replace").strip().splitlines()
        return "\n".join(lines[-_MAX_TRACEBACK_LINES:])[-self.max_output_chars :]


def _describe_exit(code: int | None) -> str:
    if code is None or (abs(code) <= _SIGNAL_EXIT_BASE and code >= 0):
        return f"The code ended with exit code {code} and no message."
    number = -code if code < 0 else code - _SIGNAL_EXIT_BASE
    names = {known.value: known.name for known in signal.Signals}
    return f"The code was ended by signal {names.get(number, number)}."
