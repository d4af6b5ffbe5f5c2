"""Runs tool calls of many chains at once and turns every failure into an observation for the model."""

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from aepo_lightning.errors import ToolError, boundary
from aepo_lightning.protocols import Tool
from aepo_lightning.types import ToolCall, ToolContext, ToolResult, ToolStatus

_MAX_QUOTED_NAME = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRuntime:
    """Runs calls of a fixed set of tools with a deadline, a result limit and a limit on concurrent calls.

    Nothing is retried, cached or collected: what there is to know about a call stands in its `ToolResult`.

    Attributes:
        tools: The tools, with distinct names of lower-case letters and underscores (a name is also a tag).
        timeout_s: Seconds one call may run. They start when the call gets its slot, not while it waits for one.
        max_result_chars: Longer texts are cut there and end with a note that says how much is missing.
        max_concurrent_calls: Calls that run at the same time in one event loop; further calls wait in order.

    Raises:
        ValueError: If a name is not a tag or occurs twice, or a limit is not positive.
    """

    tools: Sequence[Tool]
    timeout_s: float = 30.0
    max_result_chars: int = 4000
    max_concurrent_calls: int = 64
    _slots: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        """Refuse names that are no tags and settings that have no meaning."""
        for name in self.tool_names:
            if not re.fullmatch("[a-z_]+", name):
                raise ValueError(f"`name` of a tool must match [a-z_]+, but got {name!r}. Rename the tool.")
            if self.tool_names.count(name) > 1:
                raise ValueError(f"`tools` must have distinct names, but got {name!r} twice. Rename one of them.")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"`timeout_s` must be positive and finite, but got {self.timeout_s}. Give seconds.")
        for limit in ("max_result_chars", "max_concurrent_calls"):
            if getattr(self, limit) < 1:
                raise ValueError(f"`{limit}` must be at least 1, but got {getattr(self, limit)}. Raise it.")

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools that can be called, in the order given."""
        return tuple(tool.name for tool in self.tools)

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run one call. Never raises for a failing tool; only cancellation passes through.

        Args:
            call: What the policy asked for.
            context: What the tool may know about the chain.

        Returns:
            The observation. Its text is never empty, `status` says how the call ended, and `duration_s` is the time the
            tool ran, without the wait for a slot (0 if no tool ran).
        """
        tool = next((tool for tool in self.tools if tool.name == call.tool), None)
        if call.problem:
            return self._result(ToolStatus.MALFORMED, f"Error: Malformed call: {call.problem}")
        if tool is None:
            names = ", ".join(self.tool_names) or "none"
            return self._result(
                ToolStatus.UNKNOWN_TOOL,
                f"Error: Unknown tool {call.tool[:_MAX_QUOTED_NAME]!r}. Available tools: {names}.",
            )
        if not call.text.strip():
            return self._result(ToolStatus.MALFORMED, f"Error: Tool({tool.name}) got an empty call.")
        async with self._slots_of_running_loop():
            started = time.perf_counter()
            status, text = await self._run(tool, call.text, context)
            return self._result(status, text, time.perf_counter() - started)

    async def _run(self, tool: Tool, text: str, context: ToolContext) -> tuple[ToolStatus, str]:
        failures: list[Exception] = []
        answer: object = None
        deadline = asyncio.timeout(self.timeout_s)
        with boundary(failures.append):
            async with deadline:
                answer = await tool(text, context)
        if deadline.expired():
            return ToolStatus.TIMEOUT, f"Error: Tool({tool.name}) timed out after {self.timeout_s:g} s."
        if failures:
            return _describe_failure(tool.name, failures[0])
        if not isinstance(answer, str):
            kind = type(answer).__name__
            return ToolStatus.ERROR, f"Error: Tool({tool.name}) failed: it returned {kind} instead of text."
        if not answer.strip():
            return ToolStatus.EMPTY, f"Tool({tool.name}) returned empty output."
        return ToolStatus.OK, answer

    def _result(self, status: ToolStatus, text: str, duration_s: float = 0.0) -> ToolResult:
        # Half a surrogate pair is a legal str, but tokenizers refuse it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        num_cut = len(text) - self.max_result_chars
        if num_cut > 0:
            text = f"{text[: self.max_result_chars]}\n[{num_cut} of {len(text)} characters cut]"
        return ToolResult(text=text, status=status, duration_s=duration_s, is_truncated=num_cut > 0)

    def _slots_of_running_loop(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop not in self._slots:
            # A semaphore belongs to one loop; those of finished loops go, so that repeated `asyncio.run` leaks nothing.
            for finished in [known for known in self._slots if known.is_closed()]:
                del self._slots[finished]
            self._slots[loop] = asyncio.Semaphore(self.max_concurrent_calls)
        return self._slots[loop]


def _describe_failure(name: str, error: Exception) -> tuple[ToolStatus, str]:
    message = str(error) if isinstance(error, ToolError) else f"{type(error).__name__}: {error}"
    status = ToolStatus.TIMEOUT if isinstance(error, TimeoutError) else ToolStatus.ERROR
    return status, f"Error: Tool({name}) failed: {message}"
