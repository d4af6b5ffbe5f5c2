"""What stands behind a run: tools and their sandbox, what they reach, judges."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from aepo_lightning.app.build import build, build_tools, try_tools
from aepo_lightning.app.doctor.finding import Finding, failed, passed, safely, warned
from aepo_lightning.app.doctor.subject import TOOLS, Subject
from aepo_lightning.contracts.checker import Claim, Outcome
from aepo_lightning.contracts.question import Question
from aepo_lightning.contracts.tool import BranchingToolRunner, ToolCall, ToolContext, ToolResult
from aepo_lightning.event_loop import run_in_event_loop
from aepo_lightning.rewards import LLMJudge
from aepo_lightning.tools import DocumentSearch, IndexSearch, MCPTool, PythonTool, WebSearch

_SEARCHES = (DocumentSearch, IndexSearch, WebSearch)
_QUERY = "capital of France"
_JUDGE = "aepo_lightning.rewards.LLMJudge"


def look_at_tools(subject: Subject) -> Iterator[Finding]:
    """Build and start each tool by itself, and ask those that search for something."""
    names = [str(name) for name, node in subject.cfg.tools.items() if name != "runtime" and node is not None]
    if not names:
        yield passed("none: nothing can be called.")
    ready: set[str] = set()
    for name in names:
        yield from safely(partial(_look_at_tool, subject, name, ready), name)
    if len(ready) < len(names):
        subject.lose(TOOLS)


def _look_at_tool(subject: Subject, name: str, ready: set[str]) -> Iterator[Finding]:
    runner = build_tools(_alone(subject.cfg.tools, name))
    try_tools(runner)
    ready.add(name)
    yield _described(subject, name, runner)


def _alone(tools: DictConfig, name: str) -> DictConfig:
    """Return the configuration of one tool and the runtime; what refers to other keys goes on to do so."""
    found = tools.copy()
    with open_dict(found):
        for other in [key for key in found if key not in ("runtime", name)]:
            found[other] = None
    return found


def _described(subject: Subject, name: str, runner: BranchingToolRunner) -> Finding:
    tools: list[Any] = []
    for each in getattr(runner, "tools", ()):
        tools += each if isinstance(each, list | tuple) else [each]
    tool = next(iter(tools), None)
    if isinstance(tool, PythonTool):
        isolation = run_in_event_loop(tool.isolate())
        if isolation.level == "none":
            return warned(isolation.description, "Install bubblewrap and set isolation=auto.", about=name)
        return passed(f"{isolation.level}: {isolation.description}", about=name)
    if isinstance(tool, MCPTool):
        return passed(f"the server answers, with {', '.join(runner.tool_names)}.", about=name)
    if isinstance(tool, _SEARCHES):
        return _asked(name, run_in_event_loop(_ask(runner, runner.tool_names[0], subject.question)))
    return passed(f"{type(tool).__name__} is ready; it was not called.", about=name)


async def _ask(runner: BranchingToolRunner, name: str, question: Question) -> ToolResult:
    await runner.start()
    try:
        return await runner.call(ToolCall(tool=name, text=_QUERY), ToolContext(question=question, call_index=0))
    finally:
        await runner.close()


def _asked(name: str, result: ToolResult) -> Finding:
    shown = f"{result.status}: {' '.join(result.text.split())[:80]}"
    if result.is_outage:
        return failed(f"it does not answer: {shown}", "See whether its address, key and network are right.", name)
    return passed(f"it answers in {result.duration_s:.2g} s ({shown}).", about=name)


def look_at_judges(subject: Subject) -> Iterator[Finding]:
    """Have each judge of the reward judge something easy."""
    for key, node in _judges(subject.cfg):
        yield from safely(partial(_look_at_judge, key, node), key)


def _look_at_judge(key: str, node: DictConfig) -> Iterator[Finding]:
    judge: LLMJudge = build(node)
    claim = Claim(question="What is 2 + 2?", golds=("4",), answer="the number four")
    verdict = run_in_event_loop(judge(claim))
    if verdict.outcome is not Outcome.SCORED:
        yield failed(f"{judge.model} {verdict.reason}", f"See `{key}.base_url` and `{key}.model`.", key)
    elif not verdict.is_correct:
        yield warned(f"{judge.model} says that four is not 4: {verdict.reason}", "See aepo-eval judge-check.", key)
    else:
        yield passed(f"{judge.model} answers, and finds that four is 4.", key)


def _judges(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    def walk(node: Any, key: str) -> Iterator[tuple[str, DictConfig]]:
        if isinstance(node, DictConfig) and not node._is_none():
            if node.get("_target_") == _JUDGE:
                yield key, node
            for name in node:
                if not OmegaConf.is_missing(node, name):
                    yield from walk(node._get_node(name), f"{key}.{name!s}")

    yield from walk(cfg.reward, "reward")
