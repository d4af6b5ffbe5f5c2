"""Which tool calls of a turn are not run: those beyond a limit of the chain, and those that it has made before."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from aepo_lightning.contracts.tool import ToolCall, ToolResult, ToolStatus
from aepo_lightning.rollout.settings import SamplingSettings

_NOT_RUN = frozenset({ToolStatus.CALL_LIMIT, ToolStatus.REPEATED, ToolStatus.MALFORMED, ToolStatus.UNKNOWN_TOOL})
_ANSWERED = frozenset({ToolStatus.OK, ToolStatus.EMPTY})


def refused_calls(
    history: Sequence[tuple[ToolCall, ToolResult]], calls: Sequence[ToolCall], settings: SamplingSettings
) -> Mapping[int, ToolResult]:
    """Return what stands in place of a tool's answer, for those calls of a turn that no tool gets, by their place.

    A call counts against the limit of its tool if it was run, whatever became of it. It is a repetition of one that was
    answered, or that stands before it in the same turn.

    Args:
        history: The chain's calls before this turn, and their answers.
        calls: The calls of the turn.
        settings: The limits, and what is said at them.
    """
    counts = Counter(call.tool for call, result in history if result.status not in _NOT_RUN)
    asked = {_words(call) for call, result in history if result.status in _ANSWERED}
    refused: dict[int, ToolResult] = {}
    for place, call in enumerate(calls):
        answer = _refusal(call, len(history) + place, counts[call.tool], _words(call) in asked, settings)
        if answer is not None:
            refused[place] = answer
        elif not call.problem:
            counts[call.tool] += 1
            asked.add(_words(call))
    return refused


def _refusal(
    call: ToolCall, index: int, num_calls: int, is_repeated: bool, settings: SamplingSettings
) -> ToolResult | None:
    if index >= settings.max_tool_calls:
        text = f"The limit of {settings.max_tool_calls} tool calls is reached. Answer with what you know."
        return ToolResult(text=text, status=ToolStatus.CALL_LIMIT)
    if call.problem:
        return None
    limit = settings.max_calls.get(call.tool)
    if limit is not None and num_calls >= limit:
        text = settings.max_calls_message.format(limit=limit, tool=call.tool)
        return ToolResult(text=text, status=ToolStatus.CALL_LIMIT)
    if is_repeated and call.tool in settings.ask_once:
        return ToolResult(text=settings.ask_once_message.format(tool=call.tool), status=ToolStatus.REPEATED)
    return None


def _words(call: ToolCall) -> tuple[str, str]:
    """Return what a call asks: two with the same are the same call."""
    arguments = call.text.strip() if call.arguments is None else json.dumps(call.arguments, sort_keys=True, default=str)
    return call.tool, arguments
