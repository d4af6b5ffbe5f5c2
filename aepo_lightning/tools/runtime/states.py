"""What stateful tools remember of each chain: opened at its first call, copied or replayed at a branch, then freed."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aepo_lightning.contracts.tool import StatefulTool, Tool, ToolCall, ToolContext, ToolState, ToolStatus
from aepo_lightning.errors import ToolUnavailableError, boundary
from aepo_lightning.event_loop import cut_off
from aepo_lightning.tools.runtime.arguments import RAN, ArgumentReader, ran
from aepo_lightning.tools.runtime.tidying import tidying_s

logger = logging.getLogger(__name__)

_Key = tuple[str, str, tuple[int | str, ...]]


@dataclass(slots=True)
class _Held:
    """The state of one tool for one chain."""

    tool: StatefulTool
    value: Any = None
    is_open: bool = False
    num_calls: int = 0
    """Calls of the chain's history that the state has seen."""
    copy: asyncio.Task[Any] | None = None
    """The copy that is being made for this chain."""
    readers: set[asyncio.Task[Any]] = field(default_factory=set)
    """Copies that are being made of this state: it must not change before they are done."""


class ChainStates:
    """The states of all chains in one event loop.

    Args:
        deadlines_s: By tool, how long it may take to open, copy or free a state.
        readers: By tool, what reads the arguments of calls that are replayed.
    """

    def __init__(self, deadlines_s: Mapping[str, float], readers: Mapping[str, ArgumentReader]) -> None:
        self._deadlines_s, self._readers = deadlines_s, readers
        self._held: dict[_Key, _Held] = {}
        self._turns: dict[_Key, asyncio.Lock] = {}

    def turn(self, tool: Tool, context: ToolContext) -> asyncio.Lock:
        """Return what a call holds while it uses the chain's state: the calls of one turn use it in their order."""
        return self._turns.setdefault(_key(tool, context), asyncio.Lock())

    async def _within_deadline(self, tool: Tool, work: Coroutine[Any, Any, Any]) -> Any:
        name = tool.spec.name
        return await cut_off(work, self._deadlines_s[name], f"Tool({name})")

    async def bring(self, tool: StatefulTool, context: ToolContext) -> Any:
        """Return the chain's state with all its calls so far in it, replaying those that are missing.

        Args:
            tool: Whose state.
            context: The chain, before its next call.

        Raises:
            ToolUnavailableError: If the state is lost and cannot be built again.
            TimeoutError: If the opening or a replayed call takes too long.
        """
        held = self._held.setdefault(_key(tool, context), _Held(tool))
        if held.readers:
            await asyncio.wait(held.readers)
        if held.copy is not None:
            await self._take_copy(held)
        missing = ran(tool.spec.name, context.history)[held.num_calls :]
        if missing and tool.spec.state is ToolState.UNFORKABLE:
            raise ToolUnavailableError("its state was lost.")
        if not held.is_open:
            held.value, held.is_open = await self._within_deadline(tool, tool.open(context)), True
        for call in missing:
            await self._within_deadline(tool, self._replay(tool, call, replace(context, state=held.value)))
            held.num_calls += 1
        return held.value

    async def _replay(self, tool: StatefulTool, call: ToolCall, context: ToolContext) -> None:
        # It may have failed the first time, too.
        with boundary(lambda error: logger.debug("A replayed call of %s failed: %r", tool.spec.name, error)):
            await tool(await self._readers[tool.spec.name].read(call), context)

    async def _take_copy(self, held: _Held) -> None:
        copy, held.copy = held.copy, None
        assert copy is not None, "the caller has looked"
        with boundary(lambda error: logger.info("A copied state of %s is replayed instead: %r", held.tool, error)):
            held.value, held.is_open = await copy, True
        if not held.is_open:
            held.num_calls = 0

    async def note(self, tool: StatefulTool, context: ToolContext, status: ToolStatus) -> None:
        """Keep in mind that a call was made. One that was cut off leaves nobody knows what, so its state goes."""
        if status in RAN:
            self._held[_key(tool, context)].num_calls += 1
        else:
            await self._drop(_key(tool, context))

    def branch(self, tools: Sequence[StatefulTool], source: ToolContext, target: ToolContext) -> None:
        """Start to copy what can be copied. What is not is replayed at the branch's first call.

        Args:
            tools: The stateful ones.
            source: The chain that branches, wherever it stands by now.
            target: The branch, with the calls that both share.
        """
        for tool in tools:
            held = self._held.get(_key(tool, source))
            shared = len(ran(tool.spec.name, target.history))
            is_there = held is not None and held.is_open and held.num_calls == shared
            if held is None or not (is_there and shared and tool.spec.state is ToolState.FORKABLE):
                continue
            copy = asyncio.ensure_future(self._within_deadline(tool, tool.fork(held.value)))
            held.readers.add(copy)
            copy.add_done_callback(held.readers.discard)
            self._held[_key(tool, target)] = _Held(tool, num_calls=shared, copy=copy)

    async def release(self, tools: Sequence[StatefulTool], context: ToolContext) -> None:
        """Free the states of a chain."""
        for tool in tools:
            self._turns.pop(_key(tool, context), None)
            await self._drop(_key(tool, context))

    async def close(self) -> None:
        """Free all states."""
        for key in list(self._held):
            await self._drop(key)

    async def _drop(self, key: _Key) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return
        if held.readers:
            await asyncio.wait(held.readers)
        if held.copy is not None:
            await self._take_copy(held)
        if held.is_open:
            with boundary(lambda error: logger.warning("A state of %s could not be freed: %r", held.tool, error)):
                name = held.tool.spec.name
                await cut_off(held.tool.release(held.value), tidying_s(self._deadlines_s[name]), f"Tool({name})")


def _key(tool: Tool, context: ToolContext) -> _Key:
    return tool.spec.name, context.question.question_id, context.seed_path
