"""A scripted agent that answers questions: without a detour, or with the faults of one that is still learning."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from aepo_lightning.contracts.question import DemonstrationTurn, Question, SegmentSource
from aepo_lightning.contracts.tool import Tool, ToolContext
from aepo_lightning.errors import ConfigError, ToolError
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.tasks.deep_search.plans import Step
from aepo_lightning.tasks.deep_search.questions import Solved

_CALL_STYLES = ("tags", "hermes")
_ADDRESS = re.compile(r"http://[\w.]+/\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imperfection:
    """How often demonstrations go wrong. A policy that imitates them has something left to learn.

    Raises:
        ConfigError: If a rate is no probability.
    """

    wrong_query: float = 0.0
    """Probability that a search comes after one with a misspelt name."""
    superfluous_call: float = 0.0
    """Probability that a call is followed by one that is not needed: another page of the results, or the same again."""
    wrong_answer: float = 0.0
    """Probability that the answer is something else that was read, or a sum without one of its terms."""

    def __post_init__(self) -> None:
        """Refuse rates that are no probability."""
        for name in ("wrong_query", "superfluous_call", "wrong_answer"):
            rate = getattr(self, name)
            if not 0 <= rate <= 1 or math.isnan(rate):
                raise ConfigError(f"`{name}` must be in [0, 1], but got {rate}. It is a probability.")


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
    uses_python: bool = False
    """Whether sums are calls of the python tool."""

    def __post_init__(self) -> None:
        """Refuse a style that does not exist."""
        if self.call_style not in _CALL_STYLES:
            raise ConfigError(f"`call_style` must be one of {', '.join(_CALL_STYLES)}, but got {self.call_style!r}.")

    def answer(
        self, question: Question, solved: Solved, random: Random, imperfection: Imperfection
    ) -> tuple[DemonstrationTurn, ...]:
        """Return the turns in which the agent answers a question.

        Args:
            question: What is asked.
            solved: How to answer it.
            random: Where faults come from.
            imperfection: How frequent they are.

        Raises:
            ConfigError: If a tool is missing, or does not show the pages of the world.
        """
        return run_in_event_loop(self._follow(_Attempt(question=question), solved, random, imperfection))

    async def _follow(
        self, attempt: "_Attempt", solved: Solved, random: Random, imperfection: Imperfection
    ) -> tuple[DemonstrationTurn, ...]:
        for step in solved.plan:
            if step.tool == "search" and random.random() < imperfection.wrong_query:
                await self._act(attempt, Step(tool="search", argument=_misspelt(step.argument, random), shows=""))
            result = await self._act(attempt, step)
            attempt.learnt = step.note
            if random.random() < imperfection.superfluous_call:
                await self._act(attempt, self._needless(step, result, solved, random))
        is_wrong = random.random() < imperfection.wrong_answer
        self._conclude(attempt, solved, random.choice(solved.mistakes) if is_wrong else solved.answer)
        return tuple(attempt.turns)

    def _conclude(self, attempt: "_Attempt", solved: Solved, answer: str) -> None:
        """Say what was learnt last, add up what is to be added, and answer."""
        learnt = solved.plan[-1].note.replace(solved.answer, answer)
        if solved.terms:
            terms = _terms_of(solved, answer)
            if self.uses_python:
                call = self._written("python", "code", " + ".join(terms))
                attempt.add(SegmentSource.POLICY, f"<think> {learnt} </think> {call}")
                attempt.add(SegmentSource.TOOL, answer)
                learnt = f"The sum is {answer}."
            else:
                learnt = f"{learnt} The sum of {' and '.join(terms)} is {answer}."
        attempt.add(SegmentSource.POLICY, f"<think> {learnt} </think> <answer> \\boxed{{{answer}}} </answer>")

    async def _act(self, attempt: "_Attempt", step: Step) -> str:
        """Make a call and note it with its answer, which is returned."""
        intention = f"I search for {step.argument}." if step.tool == "search" else "I open the page."
        thought = f"{attempt.learnt} {intention}".strip()
        attempt.learnt = ""
        call = self._written(step.tool, self._tool(step).spec.text_parameter, step.argument)
        attempt.add(SegmentSource.POLICY, f"<think> {thought} </think> {call}")
        result = await self._result(attempt, step)
        attempt.add(SegmentSource.TOOL, result)
        return result

    def _written(self, tool: str, parameter: str, argument: str) -> str:
        """Write a call."""
        if self.call_style == "tags":
            return f"<{tool}> {argument} </{tool}>"
        call = json.dumps({"name": tool, "arguments": {parameter: argument}}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"

    async def _result(self, attempt: "_Attempt", step: Step) -> str:
        """Return what a call is answered, as the runtime words it."""
        tool = self._tool(step)
        context = ToolContext(question=attempt.question, call_index=len(attempt.turns) // 2)
        try:
            text = await tool({tool.spec.text_parameter: step.argument}, context) or tool.spec.empty_answer
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

    def _needless(self, step: Step, result: str, solved: Solved, random: Random) -> Step:
        """Return a call after a step that proves nothing: a page that the plan leaves out, or the same call again."""
        planned = {each.argument for each in solved.plan}
        others = [url for url in dict.fromkeys(_ADDRESS.findall(result)) if url not in planned]
        if others and "browse" in self.tools:
            return Step(tool="browse", argument=random.choice(others), shows="")
        return step


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """A demonstration in the making."""

    question: Question
    turns: list[DemonstrationTurn] = field(default_factory=list)
    learnt: str = ""
    """What the last answer told and was not said yet."""

    def add(self, source: SegmentSource, text: str) -> None:
        self.turns.append(DemonstrationTurn(source=source, text=text))


def _terms_of(solved: Solved, answer: str) -> list[str]:
    """Return the terms of a sum; one is missing where the answer is wrong."""
    terms = list(solved.terms)
    if (missing := sum(terms) - int(answer)) in terms:
        terms.remove(missing)
    return list(map(str, terms))


def _misspelt(name: str, random: Random) -> str:
    """Return a name of which one word has two letters in the wrong order, or one too few where they are the same."""
    words = name.split()
    position = random.randrange(len(words) > 2, len(words))  # `The` of a title is left alone
    word = words[position]
    place = random.randrange(1, len(word) - 1)
    swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    words[position] = swapped if swapped != word else word[:place] + word[place + 1 :]
    return " ".join(words)
