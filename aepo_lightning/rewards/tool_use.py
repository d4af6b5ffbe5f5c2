"""Which tools a trajectory used."""

from collections.abc import Iterable

from aepo_lightning.contracts.reward import RewardInput
from aepo_lightning.contracts.tool import ToolStatus

_EXECUTED = frozenset({ToolStatus.OK, ToolStatus.EMPTY, ToolStatus.ERROR, ToolStatus.TIMEOUT})


def used_all(sample: RewardInput, tools: Iterable[str], from_executed_calls: bool) -> bool:
    """Return whether every one of some tools was used.

    Args:
        sample: The trajectory.
        tools: Their names, which are their tags.
        from_executed_calls: A tool counts if one of its calls reached it, whether it answered, answered nothing, failed
            or ran out of time. Otherwise its closing tag in the text is enough.
    """
    if not from_executed_calls:
        return all(f"</{tag}>" in sample.response_text for tag in tools)
    # The last call has no result when the call limit ended the trajectory: it did not run.
    pairs = zip(sample.tool_calls, sample.tool_results, strict=False)
    return set(tools) <= {call.tool for call, result in pairs if result.status in _EXECUTED}
