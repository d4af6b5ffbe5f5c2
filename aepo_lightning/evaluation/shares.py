"""What evaluated trajectories took, and how many had no answer, no verdict, or tools that failed them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aepo_lightning.contracts.checker import Outcome, Verdict
from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.evaluation.results import TrajectoryResult
from aepo_lightning.evaluation.statistics import tool_productivity
from aepo_lightning.rewards.judge.failures import AbstentionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of all trajectories, in [0, 1]."""

    answered: float
    truncated: float
    """Ended by a limit of tokens, or by that of time."""
    abstained: float
    """The judge was not reached, or gave no verdict."""
    unscored: float
    """The rule gave none."""
    failed_judge: float
    """With an abstention that is not the judge's own word: its server failed, or the reply was no verdict."""
    no_verdict: Mapping[str, float]
    """By why there is none, such as `unreachable`."""
    failed_tools: float
    """With at least one call that failed because of what stands behind the tool: unavailable, busy, or too slow."""
    with_tools: float
    """With at least one call."""
    failed_calls: Mapping[str, float]
    """Of all calls, by `ToolStatus`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What trajectories take, in the mean."""

    num_calls: float
    by_tool: Mapping[str, float]
    productivity: float | None
    """Of the headline; see `tool_productivity`."""
    num_generated_tokens: float
    """The length of responses without tool results."""
    num_result_tokens: float


def missing_kind(verdict: Verdict) -> str:
    """Return why there is no score: what a judge writes before its reason, else the outcome."""
    word, colon, _ = verdict.reason.partition(": ")
    is_named = verdict.outcome is Outcome.ABSTAINED and colon and word.isidentifier()
    return word if is_named else str(verdict.outcome)


def shares_of(results: Sequence[TrajectoryResult]) -> Shares:
    """Return the shares of some trajectories, at least one."""
    outcomes = Counter(result.verdict.outcome for result in results)
    failed = sum((Counter(result.num_failed_calls) for result in results), Counter[str]())
    num_calls = sum(result.num_tool_calls for result in results)
    number = len(results)
    missing = Counter(missing_kind(result.verdict) for result in results if not result.verdict.is_scored)
    return Shares(
        answered=sum(bool(result.answer.strip()) for result in results) / number,
        truncated=sum(result.stop_reason in (StopReason.LENGTH, StopReason.TIMEOUT) for result in results) / number,
        abstained=outcomes[Outcome.ABSTAINED] / number,
        unscored=outcomes[Outcome.UNSCORED] / number,
        failed_judge=(outcomes[Outcome.ABSTAINED] - missing[AbstentionKind.UNDECIDED]) / number,
        no_verdict={kind: missing[kind] / number for kind in sorted(missing)},
        failed_tools=sum(result.num_outages > 0 for result in results) / number,
        with_tools=sum(result.num_tool_calls > 0 for result in results) / number,
        failed_calls={status: failed[status] / max(num_calls, 1) for status in sorted(failed)},
    )


def calls_of(results: Sequence[TrajectoryResult], accuracy: float | None) -> Calls:
    """Return what some trajectories took, at least one.

    Args:
        results: The trajectories.
        accuracy: Their score in [0, 1]; None if they have none.
    """
    by_tool = sum((Counter(result.num_calls) for result in results), Counter[str]())
    number, num_calls = len(results), by_tool.total() / len(results)
    return Calls(
        num_calls=num_calls,
        by_tool={tool: by_tool[tool] / number for tool in sorted(by_tool)},
        productivity=None if accuracy is None else tool_productivity(accuracy, num_calls),
        num_generated_tokens=sum(result.num_generated_tokens for result in results) / number,
        num_result_tokens=sum(result.num_result_tokens for result in results) / number,
    )
