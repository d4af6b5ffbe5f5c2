"""The same sampler in lock-step, as the released AEPO code advances its chains.

In a round, every chain that is alive generates one turn, and the round waits for the last of them; then all tool calls
of the round run side by side, and the round waits for the last of them. A branch that a round opens joins at the next
one. The sampler stays as it is: a barrier stands before its engine and its tools. Nobody tells the barrier how many
chains there are; it takes a phase as complete when nobody has come for some turns of the event loop, in which every
chain that can move has moved.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from torch import Tensor

from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.generation import Generation, SamplingParams
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolResult, ToolRunner

ResultT = TypeVar("ResultT")
Waiting = tuple[Callable[[], Awaitable[Any]], "asyncio.Future[Any]"]

_QUIET_TURNS = 16
"""Turns of the event loop without a newcomer after which everybody waits. A chain needs four at most between steps."""


@dataclass(eq=False)
class Barrier:
    """Runs generations and tool calls in alternating phases, each as a whole."""

    num_phases: int = 0
    _calls: list[Waiting] = field(default_factory=list)
    _generations: list[Waiting] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def generate(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run a generation with all others of its round."""
        return await self._wait_in(self._generations, work)

    async def call(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run a tool call with all others of its round."""
        return await self._wait_in(self._calls, work)

    async def _wait_in(self, queue: list[Waiting], work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        queue.append((work, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        while self._calls or self._generations:
            await self._until_quiet()
            queue = self._calls or self._generations
            phase = queue[:]
            queue.clear()
            results = await asyncio.gather(*(work() for work, _ in phase))
            self.num_phases += 1
            for (_, future), result in zip(phase, results, strict=True):
                future.set_result(result)
            await self._until_quiet()

    async def _until_quiet(self) -> None:
        num_waiting, num_quiet = -1, 0
        while num_quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            now = len(self._calls) + len(self._generations)
            num_quiet = num_quiet + 1 if now == num_waiting else 0
            num_waiting = now


@dataclass(eq=False)
class LockStepEngine:
    """Generates in rounds. Probe callbacks come when the round is over."""

    engine: Engine
    barrier: Barrier

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens."""
        return self.engine.max_model_len

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids` with the other chains of the round."""
        probes: list[Generation] = []
        generation = await self.barrier.generate(lambda: self.engine.generate(prompt_ids, params, probes.append))
        if on_probe is not None:
            for probe in probes:
                on_probe(probe)
        return generation

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load weights."""
        self.engine.load_weights(weights, version)

    def sleep(self) -> None:
        """Free what only generation needs."""
        self.engine.sleep()

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


@dataclass(eq=False)
class LockStepTools:
    """Calls tools in rounds."""

    tools: ToolRunner
    barrier: Barrier

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools."""
        return self.tools.tool_names

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run one call with the other calls of the round."""
        return await self.barrier.call(lambda: self.tools.call(call, context))


@dataclass(eq=False)
class MeteredEngine:
    """An engine that counts its tokens and the time in which nothing runs."""

    engine: Engine
    num_tokens: int = 0
    num_running: int = 0
    busy_s: float = 0.0
    _since: float = 0.0

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens."""
        return self.engine.max_model_len

    async def generate(
        self, prompt_ids: list[int], params: SamplingParams, on_probe: Callable[[Generation], None] | None = None
    ) -> Generation:
        """Continue `prompt_ids`."""
        if not self.num_running:
            self._since = perf_counter()
        self.num_running += 1
        try:
            generation = await self.engine.generate(prompt_ids, params, on_probe)
        finally:
            self.num_running -= 1
            if not self.num_running:
                self.busy_s += perf_counter() - self._since
        self.num_tokens += len(generation.token_ids)
        return generation

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Load weights, forget cached prefixes, and count from zero."""
        self.engine.load_weights(weights, version)
        self.num_tokens, self.busy_s = 0, 0.0

    def sleep(self) -> None:
        """Free what only generation needs."""
        self.engine.sleep()

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()
