"""A scripted agent that answers questions: without a detour, or with the faults of one that is still learning."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aepo_lightning.contracts.question import DemonstrationTurn, Question, SegmentSource
from aepo_lightning.contracts.tool import Tool, ToolContext
from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.tasks.deep_search.plans import Step
from aepo_lightning.tasks.deep_search.questions import Solved

_CALL_STYLES = ("tags", "hermes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedAgent:
    """Follows the plan of a question with real calls of the tools.

    Raises:
        ConfigError: If the call style is unknown.
    """

    tools: Mapping[str, Tool]
    """`search`, and `browse` if plans need it, by their names."""
    call_style: str = "tags"
    """How calls are written: tags (`<search> .. </search>`), or hermes (JSON in `<tool_call>` tags, as Qwen3 does)."""

    def __post_init__(self) -> None:
        """Refuse a style that does not exist."""
        if self.call_style not in _CALL_STYLES:
            raise ConfigError(f"`call_style` must be one of {', '.join(_CALL_STYLES)}, but got {self.call_style!r}.")

    def answer(self, question: Question, solved: Solved) -> tuple[DemonstrationTurn, ...]:
        """Return the turns of an agent that makes no call too many."""
        return run_in_event_loop(self._follow(question, solved.plan, solved.answer))

    async def _follow(self, question: Question, plan: Sequence[Step], answer: str) -> tuple[DemonstrationTurn, ...]:
        turns: list[DemonstrationTurn] = []
        learnt = ""
        for number, step in enumerate(plan):
            thought = f"{learnt} {_intention(step)}".strip()
            turns.append(_own(f"<think> {thought} </think> {self._call(step)}"))
            result = await self._result(question, step, number)
            turns.append(DemonstrationTurn(source=SegmentSource.TOOL, text=result))
            learnt = step.note
        turns.append(_own(f"<think> {learnt} </think> <answer> \\boxed{{{answer}}} </answer>"))
        return tuple(turns)

    def _call(self, step: Step) -> str:
        """Write a call."""
        if self.call_style == "tags":
            return f"<{step.tool}> {step.argument} </{step.tool}>"
        arguments = {self._tool(step).spec.text_parameter: step.argument}
        call = json.dumps({"name": step.tool, "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"

    async def _result(self, question: Question, step: Step, call_index: int) -> str:
        """Return what a call is answered, as the runtime would word it."""
        tool = self._tool(step)
        context = ToolContext(question=question, call_index=call_index)
        try:
            text = await tool({tool.spec.text_parameter: step.argument}, context)
        except ToolError as error:
            text = f"Error: Tool({step.tool}) failed: {error}"
        if step.shows not in " ".join(text.split()):
            raise ConfigError(
                f"`{step.tool}` must show {step.shows!r}, but answered {text[:200]!r}. Set tools=deep_search, "
                "in which it has the pages of the task's world, and let it show whole sentences."
            )
        return text

    def _tool(self, step: Step) -> Tool:
        if step.tool not in self.tools:
            raise ConfigError(f"`{step.tool}` must be a tool for demonstrations to call, but got None. Give one.")
        return self.tools[step.tool]


def _own(text: str) -> DemonstrationTurn:
    return DemonstrationTurn(source=SegmentSource.POLICY, text=text)


def _intention(step: Step) -> str:
    return f"I search for {step.argument}." if step.tool == "search" else "I open the page."
