"""One admitted call: attempts within a deadline, and every way to fail turned into a status and a text."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from aepo_lightning.attempts import attempts
from aepo_lightning.contracts.tool import RetryPolicy, Tool, ToolContext, ToolResult, ToolSpec, ToolStatus
from aepo_lightning.errors import ToolError, ToolTimeoutError, ToolUnavailableError, boundary
from aepo_lightning.event_loop import CutOffError, cut_off


async def attempt_call(
    tool: Tool, arguments: Mapping[str, Any], context: ToolContext, deadline_s: float, retry: RetryPolicy
) -> ToolResult:
    """Call a tool, again if its retry policy says so, until the deadline.

    Args:
        tool: What to call.
        arguments: Checked against the schema.
        context: The chain that calls.
        deadline_s: Seconds for all attempts and the waits between them.
        retry: Which failures are worth another attempt.

    Returns:
        How it ended, with the whole text. Only cancellation passes through.
    """
    name = tool.spec.name
    failures: list[Exception] = []
    if (prepare := getattr(tool, "prepare", None)) is not None:
        with boundary(failures.append):
            await prepare()
        if failures:
            return replace(describe_failure(name, failures[0]), status=ToolStatus.UNAVAILABLE, num_attempts=0)
    started = time.perf_counter()
    ends_at = asyncio.get_running_loop().time() + deadline_s
    answer: object = None
    num_attempts = 0

    async def work() -> object:
        nonlocal num_attempts
        # Setting a retry loop up takes longer than many a request, and most first attempts succeed.
        first: list[Exception] = []
        num_attempts = 1
        with boundary(first.append):
            return await tool(arguments, context)
        async for attempt in attempts(
            partial(_may_pass, policy=retry),
            max_attempts=retry.max_attempts,
            backoff_s=retry.backoff_s,
            ends_at=ends_at,
        ):
            with attempt:
                if first:
                    raise first.pop()
                num_attempts += 1
                return await tool(arguments, context)
        raise AssertionError("the last attempt returns or raises")

    with boundary(failures.append):
        answer = await cut_off(work(), deadline_s, f"Tool({name})")
    if failures and isinstance(failures[0], CutOffError):
        result = ToolResult(status=ToolStatus.TIMEOUT, text=f"Error: Tool({name}) timed out after {deadline_s:g} s.")
    elif failures:
        result = describe_failure(name, failures[0])
    else:
        result = _describe_answer(tool.spec, answer)
    return replace(result, duration_s=time.perf_counter() - started, num_attempts=num_attempts)


def _may_pass(error: Exception, policy: RetryPolicy) -> bool:
    return not {kind.__name__ for kind in type(error).__mro__}.isdisjoint(policy.errors)


def _describe_answer(spec: ToolSpec, answer: object) -> ToolResult:
    name = spec.name
    if not isinstance(answer, str):
        kind = type(answer).__name__
        text = f"Error: Tool({name}) failed: it returned {kind} instead of text."
        return ToolResult(status=ToolStatus.ERROR, text=text)
    if not answer or answer.isspace():
        return ToolResult(status=ToolStatus.EMPTY, text=spec.empty_answer or f"Tool({name}) returned empty output.")
    return ToolResult(status=ToolStatus.OK, text=answer)


def describe_failure(name: str, error: Exception) -> ToolResult:
    """Return the result of a call that raised."""
    message = f"{type(error).__name__}, which cannot say what it is."
    with boundary(lambda _: None):
        message = str(error) if isinstance(error, ToolError) else f"{type(error).__name__}: {error}"
    status = ToolStatus.ERROR
    if isinstance(error, TimeoutError):
        status = ToolStatus.TIMEOUT
    elif isinstance(error, ToolUnavailableError):
        status = ToolStatus.UNAVAILABLE
    text, is_own = f"Error: Tool({name}) failed: {message}", isinstance(error, ToolTimeoutError)
    return ToolResult(status=status, text=text, is_program_timeout=is_own)
