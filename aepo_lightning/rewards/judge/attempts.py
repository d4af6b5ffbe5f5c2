"""Another attempt after a pause, for failures that may pass, until there are no more attempts or no more time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aepo_lightning.attempts import attempts
from aepo_lightning.event_loop import CutOffError, cut_off
from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.settings import JudgeLimits

T = TypeVar("T")


async def with_attempts(attempt: Callable[[], Awaitable[T]], limits: JudgeLimits, name: str) -> T:
    """Return what an attempt returns.

    A server that asks for a pause gets it, unless that is longer than `max_retry_after_s` or ends after the deadline.

    Args:
        attempt: Asks once.
        limits: How often, with which pauses, and for how long in all.
        name: Who is asked, for the log.

    Raises:
        JudgeFailure: That of the last attempt, or that the deadline has passed.
    """
    ends_at = asyncio.get_running_loop().time() + limits.deadline_s

    async def work() -> T:
        async for each in attempts(
            lambda error: isinstance(error, JudgeFailure) and error.can_pass,
            max_attempts=limits.max_attempts,
            backoff_s=limits.backoff_s,
            ends_at=ends_at,
            max_retry_after_s=limits.max_retry_after_s,
        ):
            with each:
                return await attempt()
        raise AssertionError("the last attempt returns or raises")

    try:
        return await cut_off(work(), limits.deadline_s, name)
    except CutOffError:
        text = f"gave no verdict within {limits.deadline_s:g} s"
        raise JudgeFailure(AbstentionKind.TIMEOUT, text) from None
