"""Runs tool calls of many chains at once and turns every failure into an observation for the model."""

import asyncio
import logging
import math
import re
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from aepo_lightning.circuit_breaker import CircuitOpenError
from aepo_lightning.contracts.tool import (
    StatefulTool,
    Tool,
    ToolCall,
    ToolContext,
    ToolLimits,
    ToolResult,
    ToolSpec,
    ToolState,
    ToolStatus,
)
from aepo_lightning.errors import ConfigError, ToolUnavailableError, boundary
from aepo_lightning.event_loop import cut_off
from aepo_lightning.tools.functions.tool import as_tool
from aepo_lightning.tools.runtime.admission import QueueFullError
from aepo_lightning.tools.runtime.arguments import ArgumentReader, BadArgumentsError, ran
from aepo_lightning.tools.runtime.attempts import attempt_call, describe_failure
from aepo_lightning.tools.runtime.cache import ToolCache
from aepo_lightning.tools.runtime.kept_answers import KeptAnswers
from aepo_lightning.tools.runtime.loop_state import LoopState
from aepo_lightning.tools.runtime.loop_watch import StandStills
from aepo_lightning.tools.runtime.outage import Outage
from aepo_lightning.tools.runtime.tidying import tidying_s

logger = logging.getLogger(__name__)

_MAX_QUOTED_NAME = 50
ToolLike: TypeAlias = Tool | Callable[..., Any]


class _Known:
    """A tool and what it says of itself, asked once."""

    def __init__(self, tool: Tool) -> None:
        self.tool, self.spec = tool, tool.spec
        self.reader = ArgumentReader(self.spec)
        self.stateful: StatefulTool | None = None
        if self.spec.state is not ToolState.STATELESS:
            if not isinstance(tool, StatefulTool):
                raise ConfigError(f"{self.spec.name!r} must be a `StatefulTool` to be {self.spec.state}.")
            self.stateful = tool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRuntime:
    """Runs calls of a fixed set of tools within their limits, and shares and keeps answers where they may be.

    What there is to know about a call stands in its `ToolResult`. A tool that hangs or fails holds its own slots only.

    Attributes:
        tools: The tools, with distinct names of lower-case letters, digits and underscores (a name is also a tag). A
            plain or `async` function with type hints and a docstring is a tool as well. A list among them, such as
            that of an MCP server, counts as its members.
        timeout_s: Deadline of tools that name none. It starts when a call gets its slot, not while it waits for one.
        max_result_chars: Longer texts are cut there, and end with a note that says how much is missing.
        max_concurrent_calls: Calls of each tool that run at the same time in one event loop, for tools that name no
            number; further calls wait in order.
        max_queued_calls: Calls of each tool that may wait for a slot, for tools that name no number. One more is
            answered at once that the tool is busy.
        cache: Keeps answers of tools whose limits ask for it. None keeps none.
        max_unavailable_s: Seconds for which calls are answered that a tool is unavailable.
        on_outage: What happens then: `stop` ends the run, which continues with ckpt_path=last; `wait` has calls wait
            until the tool is back.

    Raises:
        ConfigError: If something is neither a tool nor a function that can be one, a name is not a tag or occurs twice,
            or a limit is not positive.
    """

    tools: Sequence[ToolLike | Sequence[ToolLike]]
    timeout_s: float = 30.0
    max_result_chars: int = 4000
    max_concurrent_calls: int = 64
    max_queued_calls: int = 65_536
    cache: ToolCache | None = None
    max_unavailable_s: float = 600.0
    on_outage: Literal["stop", "wait"] = "stop"
    _loops: dict[asyncio.AbstractEventLoop, LoopState] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_name: dict[str, _Known] = field(init=False, repr=False, compare=False, default_factory=dict)
    _outages: dict[str, Outage] = field(init=False, repr=False, compare=False, default_factory=dict)
    _kept: KeptAnswers = field(init=False, repr=False, compare=False)
    _lags_s: list[float] = field(init=False, repr=False, compare=False, default_factory=list)
    _stand_stills: StandStills = field(init=False, repr=False, compare=False, default_factory=StandStills)

    def __post_init__(self) -> None:
        """Refuse names that are no tags and settings that have no meaning."""
        flat = [tool for each in self.tools for tool in (each if isinstance(each, Sequence) else (each,))]
        for known in map(_Known, map(as_tool, flat)):
            name = known.spec.name
            if not re.fullmatch("[a-z_][a-z0-9_]*", name):
                raise ConfigError(f"`name` of a tool must match [a-z_][a-z0-9_]*, but got {name!r}. Rename the tool.")
            if name in self._by_name:
                raise ConfigError(f"`tools` must have distinct names, but got {name!r} twice. Rename one of them.")
            self._by_name[name] = known
            self._outages[name] = Outage(name, self.max_unavailable_s, self.on_outage == "wait")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"`timeout_s` must be positive and finite, but got {self.timeout_s}. Give seconds.")
        for limit in ("max_result_chars", "max_concurrent_calls"):
            if getattr(self, limit) < 1:
                raise ConfigError(f"`{limit}` must be at least 1, but got {getattr(self, limit)}. Raise it.")
        if self.max_queued_calls < 0:
            raise ConfigError(
                f"`max_queued_calls` must not be negative, but got {self.max_queued_calls}. 0 queues none."
            )
        if not self.max_unavailable_s >= 0 or self.on_outage not in ("stop", "wait"):
            raise ConfigError(
                "`max_unavailable_s` must not be negative and `on_outage` be 'stop' or 'wait', but got "
                f"{self.max_unavailable_s} and {self.on_outage!r}."
            )
        object.__setattr__(self, "_kept", KeptAnswers(self.cache))

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools that can be called, in the order given."""
        return tuple(self._by_name)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the tools say of themselves, in the order given."""
        return tuple(known.spec for known in self._by_name.values())

    def only(self, names: Collection[str]) -> "ToolRuntime":
        """Return a runtime with the same settings and cache, of those tools alone that have one of these names."""
        return replace(self, tools=[known.tool for name, known in self._by_name.items() if name in names])

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run one call. Never raises for a failing call.

        Args:
            call: What the policy asked for.
            context: What the tool may know about the chain.

        Returns:
            The observation. Its text is never empty and `status` says how the call ended.

        Raises:
            ToolOutageError: If the tool has been unavailable for `max_unavailable_s`, and `on_outage` is `stop`.
        """
        known = self._by_name.get(call.tool)
        if call.problem:
            return self._refuse(ToolStatus.MALFORMED, f"Malformed call: {call.problem}")
        if known is None:
            names = ", ".join(self.tool_names) or "none"
            quoted = repr(call.tool[:_MAX_QUOTED_NAME])
            return self._refuse(ToolStatus.UNKNOWN_TOOL, f"Unknown tool {quoted}. Available tools: {names}.")
        if call.arguments is None and not call.text.strip() and known.spec.text_parameter:
            return self._refuse(ToolStatus.MALFORMED, f"Tool({call.tool}) got an empty call.")
        try:
            arguments = await known.reader.read(call)
        except BadArgumentsError as error:
            return self._refuse(ToolStatus.MALFORMED, f"Tool({call.tool}) got arguments that do not fit: {error}")
        except ToolUnavailableError as error:
            return self._refuse(
                ToolStatus.UNAVAILABLE, f"The arguments of Tool({call.tool}) cannot be checked: {error}"
            )
        return await self._cached_or_new(known, arguments, context)

    def _refuse(self, status: ToolStatus, problem: str) -> ToolResult:
        return _fitted(self.max_result_chars, ToolResult(status=status, text=f"Error: {problem}", num_attempts=0))

    async def _cached_or_new(self, known: _Known, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        limits = known.spec.limits
        max_chars = limits.max_result_chars or self.max_result_chars
        is_kept = self._kept.keeps(limits)
        may_share = known.spec.state is not ToolState.UNFORKABLE and (is_kept or limits.is_single_flight)
        key = self._kept.key(known.spec, arguments, context) if may_share else None
        if key is None:
            return _fitted(max_chars, await self._in_turn(known, arguments, context))
        if is_kept and (found := self._kept.get(key)) is not None:
            return _fitted(max_chars, replace(found, num_attempts=0, is_cached=True))

        async def work() -> ToolResult:
            result = await self._in_turn(known, arguments, context)
            if is_kept:
                self._kept.put(known.spec, key, result)
            return result

        if not limits.is_single_flight:
            return _fitted(max_chars, await work())
        result, is_shared = await self._here().flights.run(key, work)
        return _fitted(max_chars, replace(result, is_shared=is_shared))

    async def _in_turn(self, known: _Known, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Wait for the chain's turn with the tool, then for a slot, and run the call."""
        turn = None if known.stateful is None else self._here().states.turn(known.tool, context)
        async with turn or nullcontext():
            return await self._outages[known.spec.name].outlast(lambda: self._in_slot(known, arguments, context))

    async def _in_slot(self, known: _Known, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Run the call in a slot, and tell the circuit breaker how it went."""
        name = known.spec.name
        desk = self._here().desks[name]
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            async with desk.slot() as permit:
                queue_s = loop.time() - asked
                with self._noted(known.tool, name):
                    result = await self._with_state(known, arguments, context)
                permit.is_failure = result.status in (ToolStatus.UNAVAILABLE, ToolStatus.TIMEOUT)
                return replace(result, queue_s=queue_s)
        except QueueFullError:
            text = f"Error: Tool({name}) is busy. Try again later."
            return ToolResult(status=ToolStatus.BUSY, text=text, num_attempts=0)
        except CircuitOpenError:
            text = f"Error: Tool({name}) is unavailable at the moment."
            return ToolResult(status=ToolStatus.UNAVAILABLE, text=text, num_attempts=0)

    def _noted(self, tool: Tool, name: str) -> AbstractContextManager[None]:
        is_apart = getattr(tool, "is_apart", False)
        return nullcontext() if is_apart else self._here().watch.running(name)

    async def _with_state(self, known: _Known, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        deadline_s = known.spec.limits.deadline_s or self.timeout_s
        if known.stateful is None:
            return await attempt_call(known.tool, arguments, context, deadline_s, known.spec.limits.retry)
        states, tool = self._here().states, known.stateful
        failures: list[Exception] = []
        result: ToolResult | None = None
        try:
            with boundary(failures.append):
                context = replace(context, state=await states.bring(tool, context))
                result = await attempt_call(tool, arguments, context, deadline_s, known.spec.limits.retry)
        finally:
            # A call that was cancelled or could not be prepared leaves a state that nobody knows.
            status = ToolStatus.UNAVAILABLE if result is None else result.status
            await states.note(tool, context, status)
        if result is not None:
            return result
        failed = describe_failure(known.spec.name, failures[0])
        # The call itself did not run, so it is nothing to replay.
        return replace(failed, status=ToolStatus.UNAVAILABLE) if failed.status is ToolStatus.ERROR else failed

    def branch_problem(self, history: Sequence[tuple[ToolCall, ToolResult]]) -> str | None:
        """Return why a chain with these calls must not branch, or None if it may."""
        for name, known in self._by_name.items():
            if known.spec.state is ToolState.UNFORKABLE and ran(name, history):
                return f"{name} can neither copy nor replay its state"
        return None

    def branch(self, source: ToolContext, target: ToolContext) -> None:
        """Start to copy the states that `target`'s chain needs; those that cannot be copied are replayed later."""
        self._here().states.branch(self._stateful(), source, target)

    async def release(self, context: ToolContext) -> None:
        """Free the states of a chain that has ended."""
        await self._here().states.release(self._stateful(), context)

    async def start(self) -> None:
        """Have every tool that needs it make ready, and see that it can.

        Raises:
            ConfigError: If a tool cannot work here.
        """
        for known in self._by_name.values():
            start = getattr(known.tool, "start", None)
            if start is not None:
                await start()

    async def close(self) -> None:
        """Free what the running event loop holds: states of chains, connections of tools. More calls may follow."""
        loop_state = self._loops.pop(asyncio.get_running_loop(), None)
        if loop_state is not None:
            await loop_state.states.close()
            self._lags_s.append(loop_state.watch.take_lag_s())
            loop_state.watch.stop()
        for known in self._by_name.values():
            close = getattr(known.tool, "close", None)
            if close is not None:
                await self._close(known.spec, close)
        await self._kept.flush()

    def metrics(self) -> dict[str, float]:
        """Return figures since this was last asked: how late the event loop was at most, and what the tools tell.

        A tool may have a method of this name; figures of one name add up.
        """
        lags_s = [*self._lags_s, *(state.watch.take_lag_s() for state in list(self._loops.values()))]
        self._lags_s.clear()
        figures = {"loop_lag_s": max(lags_s, default=0.0)}
        for known in self._by_name.values():
            own = getattr(known.tool, "metrics", None)
            for key, value in own().items() if callable(own) else ():
                figures[key] = figures.get(key, 0.0) + float(value)
        return figures

    async def _close(self, spec: ToolSpec, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # What has been answered is not lost because a tool cannot tidy up.
        with boundary(lambda error: logger.warning("Tool(%s) could not be closed: %r", spec.name, error)):
            await cut_off(close(), tidying_s(spec.limits.deadline_s or self.timeout_s), f"Tool({spec.name})")

    def _limits_of(self, spec: ToolSpec) -> ToolLimits:
        """Return the limits of a tool with the runtime's own where it names none."""
        own = spec.limits
        return replace(
            own,
            deadline_s=own.deadline_s or self.timeout_s,
            max_concurrent_calls=own.max_concurrent_calls or self.max_concurrent_calls,
            max_queued_calls=self.max_queued_calls if own.max_queued_calls is None else own.max_queued_calls,
        )

    def _stateful(self) -> list[StatefulTool]:
        return [known.stateful for known in self._by_name.values() if known.stateful is not None]

    def _here(self) -> LoopState:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            # It belongs to one loop; those of finished loops go, so that repeated `asyncio.run` leaks nothing.
            # Other threads may do the same at this moment.
            for finished in [known for known in list(self._loops) if known.is_closed()]:
                left = self._loops.pop(finished, None)
                if left is not None:
                    left.watch.stop()
            readers = {name: known.reader for name, known in self._by_name.items()}
            self._loops[loop] = LoopState(self.specs, self._limits_of, readers, self._stand_stills)
        return self._loops[loop]


def _fitted(max_chars: int, result: ToolResult) -> ToolResult:
    """Return a result whose text tokenizers take and that is not longer than it may be."""
    num_cut = len(result.text) - max_chars
    # Half a surrogate pair is a legal str, but tokenizers refuse it.
    text = result.text[:max_chars].encode("utf-8", "replace").decode("utf-8")
    if num_cut > 0:
        text = f"{text}\n[{num_cut} of {len(result.text)} characters cut]"
    return replace(result, text=text, is_truncated=num_cut > 0)
