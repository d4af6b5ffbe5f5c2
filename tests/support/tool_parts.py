"""What the tests of the tool runtime share: tools that do what a test wants, and contexts."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import ToolCall, ToolContext, ToolLimits, ToolSpec, ToolState

QUESTION = Question(question_id="q", messages=(), answers=("x",))


def make_context(history=(), path=("r", 0), question=QUESTION):
    return ToolContext(question=question, call_index=len(history), seed_path=path, history=tuple(history))


@dataclass
class CountingTool:
    """Counts what reaches it, and answers as told: with a text, by raising, or by hanging."""

    script: list[Any] = field(default_factory=list)
    """One answer for each call, then its argument again and again. An exception is raised; a number is slept."""
    limits: ToolLimits = field(default_factory=ToolLimits)
    name: str = "probe"
    is_question_bound: bool = False
    provider: str = ""
    calls: list[str] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(
            name=self.name, limits=self.limits, is_question_bound=self.is_question_bound, provider=self.provider
        )

    async def __call__(self, arguments: Mapping[str, Any], _context: ToolContext) -> str:
        self.calls.append(arguments["text"])
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            answer = self.script.pop(0) if self.script else arguments["text"]
            if isinstance(answer, Exception):
                raise answer
            await asyncio.sleep(answer if isinstance(answer, int | float) else 0)
            return str(answer)
        finally:
            self.num_running -= 1


@dataclass
class Ledger:
    """A stateful tool: appends to a list and answers with all of it."""

    state: ToolState = ToolState.FORKABLE
    name: str = "ledger"
    limits: ToolLimits = field(default_factory=ToolLimits)
    events: list[str] = field(default_factory=list)
    num_open: int = 0
    fork_error: Exception | None = None

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(name=self.name, state=self.state, limits=self.limits)

    async def open(self, _context: ToolContext) -> list[str]:
        self.events.append("open")
        await asyncio.sleep(0)
        self.num_open += 1
        return []

    async def fork(self, state: list[str]) -> list[str]:
        self.events.append("fork")
        copy = list(state)
        await asyncio.sleep(0.01)  # whoever changes the original meanwhile must not change the copy
        assert copy == state, "the original changed while it was copied"
        if self.fork_error is not None:
            raise self.fork_error
        self.num_open += 1
        return copy

    async def release(self, _state: list[str]) -> None:
        self.events.append("release")
        self.num_open -= 1

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        text = arguments["text"]
        self.events.append(text)
        if text == "hang":
            context.state.append("half")
            await asyncio.sleep(30)
        await asyncio.sleep(0)
        context.state.append(text)
        if text == "fail":
            raise ValueError(text)
        return ",".join(context.state)


def call_of(tool, text="x", **fields):
    return ToolCall(tool=tool.name, text=text, **fields)


async def talk(runtime, tool, context, *texts):
    """Make calls of one chain, one after another; return its context after them."""
    for text in texts:
        call = call_of(tool, text)
        result = await runtime.call(call, context)
        context = replace(context, history=(*context.history, (call, result)), call_index=context.call_index + 1)
    return context


def answers(context):
    return [result.text for _, result in context.history]
