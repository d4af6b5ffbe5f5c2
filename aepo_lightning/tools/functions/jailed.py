"""Functions called in the jail of the Python pool, without files, network or anything of this process."""

import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from aepo_lightning.contracts.tool import ToolContext, ToolSpec
from aepo_lightning.errors import ConfigError, ToolError, ToolTimeoutError, ToolUnavailableError
from aepo_lightning.processes.told_error import told_error
from aepo_lightning.tools.functions.standalone import standalone_source
from aepo_lightning.tools.jail import Execution, ExitKind, PythonPool

_NO_LIMIT_S = 3600.0
"""Longer than any deadline of the runtime, which ends the call where the tool names none."""
_PROGRAM = """
import contextlib as _contextlib, json as _json, sys as _sys
_arguments = _json.loads(_sys.stdin.read())
try:
    with _contextlib.redirect_stdout(_sys.stderr):
        _answer = {name}(**_arguments)
        _told = {{"text": "" if _answer is None else str(_answer)}}
except Exception as _error:
    _names = [_kind.__name__ for _kind in type(_error).__mro__]
    _told = {{"names": _names, "message": str(_error), "retry_after_s": None}}
print(_json.dumps(_told))
"""
_pools: dict[int, PythonPool] = {}


def _shared_pool() -> PythonPool:
    """Return the pool of this process for all functions; it opens at the first start."""
    if (pid := os.getpid()) not in _pools:
        _pools.setdefault(pid, PythonPool())
    return _pools[pid]


class JailedCalls:
    """Calls a function in the jail, each time in a fresh process there.

    Args:
        function: What is called. Its source is sent, with what it refers to.
        spec: Of the tool.

    Raises:
        ConfigError: If the function is `async`, takes the context, or does not stand on its own.
    """

    is_apart = True

    def __init__(self, function: Callable[..., Any], spec: ToolSpec) -> None:
        if inspect.iscoroutinefunction(function) or "context" in inspect.signature(function).parameters:
            raise ConfigError(
                f"Tool({spec.name}) must be a plain function without `context` for isolation=jail, but is another. "
                "Set isolation=process."
            )
        source = standalone_source(function, spec.name)
        self._program = source + _PROGRAM.format(name=inspect.unwrap(function).__name__)
        self._timeout_s = spec.limits.deadline_s or _NO_LIMIT_S

    async def start(self) -> None:
        """Open the pool.

        Raises:
            ConfigError: If no isolation can be had.
        """
        await _shared_pool().start()

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function.

        Raises:
            Exception: As the function raised it, with its names and message.
            ToolTimeoutError: If it took too long.
            ToolError: If it was stopped at another limit.
            ToolUnavailableError: If the jail failed, or has no place for the call.
        """
        done = await _shared_pool().run(
            self._program, stdin=json.dumps(dict(arguments)), timeout_s=self._timeout_s, seed=context.seed
        )
        return self._answer(done)

    def _answer(self, done: Execution) -> str:
        if done.exit is ExitKind.LOST:
            raise ToolUnavailableError("the sandbox failed while the function ran.")
        if done.exit is ExitKind.TIMEOUT:
            raise ToolTimeoutError(f"the function did not return within {self._timeout_s:g} s and was stopped.")
        if done.exit is not ExitKind.OK:
            raise ToolError(f"the function was stopped, or ended its process ({done.exit}).")
        try:
            told = json.loads(done.stdout)
        except ValueError:
            raise ToolError("the function wrote something else than its answer.") from None
        if "text" in told:
            return str(told["text"])
        raise told_error(told)
