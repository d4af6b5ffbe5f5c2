"""Has a trajectory scored: the one place where a reward is called, with a deadline, and where its answer is checked."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from aepo_lightning.contracts.blame import describe_failure, part_name
from aepo_lightning.contracts.reward import RewardInput, RewardOutput, checked_output
from aepo_lightning.contracts.tool import ToolStatus
from aepo_lightning.errors import ConfigError, RewardError, boundary
from aepo_lightning.event_loop import CutOffError, call_function, cut_off

logger = logging.getLogger(__name__)

_ADVICE = (
    "Mend it, or set `on_error` of the scoring settings (`rollout.scoring.on_error`) to mask: the run then goes on "
    "without trajectories that could not be scored."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings:
    """How long a reward may take, and what its failure means.

    Raises:
        ConfigError: If a value has no meaning.
    """

    deadline_s: float = 60.0
    """Seconds for one trajectory; infinite for none. A coroutine is then cancelled, a process ended. A thread cannot be
    stopped: it is left behind."""
    isolation: Literal["thread", "process"] = "thread"
    """Where a plain function runs. `process` is for rewards of which one may hold the interpreter, such as a regular
    expression that backtracks, or need a main thread: a warm process, ended at the deadline and replaced.
    Coroutines run in the loop."""
    on_error: Literal["stop", "mask"] = "stop"
    """A reward that raises, takes too long or answers with something that is no reward: `stop` ends the run with its
    name and the question, and what is finished is kept. `mask` goes on without the trajectory: it is left out of its
    group and of the update, and `rollout/unscored_fraction` counts it."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if not self.deadline_s > 0:
            raise ConfigError(f"`deadline_s` must be positive, but got {self.deadline_s}. Use inf for no deadline.")
        if self.isolation not in ("thread", "process"):
            raise ConfigError(f"`isolation` must be 'thread' or 'process', but got {self.isolation!r}.")
        if self.on_error not in ("stop", "mask"):
            raise ConfigError(f"`on_error` must be 'stop' or 'mask', but got {self.on_error!r}.")


async def score(reward: Callable[[RewardInput], Any], sample: RewardInput, settings: ScoringSettings) -> RewardOutput:
    """Return what a trajectory is worth.

    Args:
        reward: A reward, or any function of the trajectory.
        sample: The finished trajectory.
        settings: Deadline, and what a failure means.

    Raises:
        RewardError: If the reward failed and `on_error` is `stop`.
    """
    name, question_id = part_name(reward), sample.question.question_id
    failures: list[Exception] = []
    with boundary(failures.append):
        if getattr(reward, "is_immediate", False):  # arithmetic alone: nothing that could hang is worth a task
            answer = await reward(sample)
        else:
            is_endless = math.isinf(settings.deadline_s) or getattr(reward, "keeps_deadline", False)
            deadline_s = None if is_endless else settings.deadline_s
            answer = await cut_off(call_function(reward, sample, "aepo-reward"), deadline_s, f"the reward `{name}`")
        return without_outages(checked_output(answer, name, question_id), sample)
    problem = _describe(failures[0], name, question_id, settings.deadline_s)
    if settings.on_error == "stop":
        raise RewardError(f"{problem} {_ADVICE}") from failures[0]
    logger.warning("%s The trajectory is left out.", problem)
    return RewardOutput(reward=0.0, is_correct=False, is_well_formed=True, reason=problem, is_scored=False)


def without_outages(output: RewardOutput, sample: RewardInput) -> RewardOutput:
    """Leave a trajectory out of its group and the update if a tool was unavailable: that is not the policy's doing."""
    if all(result.status is not ToolStatus.UNAVAILABLE for result in sample.tool_results):
        return output
    return replace(output, is_scored=False, reason="A tool was unavailable, so the trajectory is left out.")


def _describe(error: Exception, name: str, question_id: str, deadline_s: float) -> str:
    """Say what failed, for which question, and where in the user's code."""
    if isinstance(error, CutOffError):
        rule = f"must answer within {deadline_s:g} s (`deadline_s`), but did not"
    elif isinstance(error, RewardError) and name in str(error):
        return str(error)
    else:
        rule = f"must not fail, but raised {describe_failure(error)}"
    return f"The reward `{name}` {rule}, for question {question_id!r}."
