"""Has a trajectory scored: the one place where a reward is called, with a deadline, and where its answer is checked."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aepo_lightning.contracts.blame import describe_failure, part_name
from aepo_lightning.contracts.reward import RewardInput, RewardLimits, RewardOutput, checked_output
from aepo_lightning.contracts.tool import ToolStatus
from aepo_lightning.errors import ConfigError, RewardError, boundary
from aepo_lightning.event_loop import CutOffError, Places, call_function, cut_off

logger = logging.getLogger(__name__)

_ADVICE = (
    "Mend it, or set `on_error` of the scoring settings (`rollout.scoring.on_error`) to abstain, so that the run goes "
    "on without trajectories that could not be scored, or to the reward of a failure."
)
_OUTAGES = (ToolStatus.UNAVAILABLE.value, ToolStatus.BUSY.value, ToolStatus.TIMEOUT.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings(RewardLimits):
    """What the reward of a run may cost, what its failure means, and which tools' failures say nothing of the policy.

    Raises:
        ConfigError: If a value has no meaning.
    """

    mask_failed_tools: Sequence[str] = (ToolStatus.UNAVAILABLE.value,)
    """A trajectory with a tool result of such a status is left out of its group and of the update, whatever it earns:
    `unavailable`, `busy`, `timeout` (of what stands behind a tool, not of a program that the policy wrote). Empty
    leaves none out. `failed_tools_fraction` counts all of them in either case."""
    places: Places = field(init=False, repr=False, compare=False)
    """Where trajectories wait that the reward cannot look at yet."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        RewardLimits.__post_init__(self)
        names = self.mask_failed_tools
        if isinstance(names, str) or not set(names) <= set(_OUTAGES):
            raise ConfigError(
                f"`mask_failed_tools` must be a list of {', '.join(_OUTAGES)}, but got {names!r:.80}. Use [] for none."
            )
        object.__setattr__(self, "mask_failed_tools", tuple(names))
        object.__setattr__(self, "places", Places(self.max_concurrent))


async def score(reward: Callable[[RewardInput], Any], sample: RewardInput, settings: ScoringSettings) -> RewardOutput:
    """Return what a trajectory is worth.

    Args:
        reward: A reward, or any function of the trajectory.
        sample: The finished trajectory.
        settings: Places, deadline, and what a failure means.

    Raises:
        RewardError: If the reward failed and `on_error` is `fail`.
    """
    name, question_id = part_name(reward), sample.question.question_id
    failures: list[Exception] = []
    with boundary(failures.append):
        if getattr(reward, "is_immediate", False):  # arithmetic alone: nothing that could hang is worth a task
            answer = await reward(sample)
        else:
            async with settings.places.take():
                work = call_function(reward, sample, "aepo-reward")
                answer = await cut_off(work, settings.time_for(reward), f"the reward `{name}`")
        return without_outages(checked_output(answer, name, question_id), sample, settings.mask_failed_tools)
    problem = _describe(failures[0], name, question_id, settings.deadline_s)
    if settings.on_error == "fail":
        raise RewardError(f"{problem} {_ADVICE}") from failures[0]
    logger.warning("%s %s", problem, _consequence(settings.on_error))
    value, is_scored = settings.failure
    output = RewardOutput(
        reward=value, is_correct=False, is_well_formed=True, reason=problem, is_scored=is_scored, has_failed=True
    )
    return without_outages(output, sample, settings.mask_failed_tools)


def without_outages(output: RewardOutput, sample: RewardInput, statuses: Sequence[str]) -> RewardOutput:
    """Leave a trajectory out of its group and the update if a tool failed for reasons that are not the policy's doing.

    Args:
        output: What the reward says.
        sample: The trajectory with the results of its tools.
        statuses: Of failures that count here.
    """
    met = {result.status.value for result in sample.tool_results if result.is_outage}
    if not (found := [status for status in statuses if status in met]):
        return output
    reason = f"A tool failed ({', '.join(found)}), so the trajectory is left out."
    return replace(output, is_scored=False, reason=reason)


def _consequence(on_error: str | float) -> str:
    return "The trajectory is left out." if on_error == "abstain" else f"The trajectory earns {on_error:g}."


def _describe(error: Exception, name: str, question_id: str, deadline_s: float) -> str:
    """Say what failed, for which question, and where in the user's code."""
    if isinstance(error, CutOffError):
        rule = f"must answer within {deadline_s:g} s (`deadline_s`), but did not"
    elif isinstance(error, RewardError) and name in str(error):
        return str(error)
    else:
        rule = f"must not fail, but raised {describe_failure(error)}"
    return f"The reward `{name}` {rule}, for question {question_id!r}."
