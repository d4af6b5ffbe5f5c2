"""Another attempt after a pause, for failures that may pass, until there are no more attempts or no more time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import stamina

from aepo_lightning.event_loop import CutOffError, cut_off
from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.settings import JudgeLimits

T = TypeVar("T")

_MAX_BACKOFF_S = 30.0


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
        async for each in _attempts(limits, ends_at):
            with each:
                return await attempt()
        raise AssertionError("the last attempt returns or raises")

    try:
        return await cut_off(work(), limits.deadline_s, name)
    except CutOffError:
        text = f"gave no verdict within {limits.deadline_s:g} s"
        raise JudgeFailure(AbstentionKind.TIMEOUT, text) from None


def _attempts(limits: JudgeLimits, ends_at: float) -> AsyncIterator[AbstractContextManager[object]]:
    loop = asyncio.get_running_loop()

    def pause(error: Exception) -> bool | float:
        if not isinstance(error, JudgeFailure) or not error.can_pass:
            return False
        asked = error.retry_after_s
        if asked is None:
            return True
        return asked if asked <= limits.max_retry_after_s and loop.time() + asked < ends_at else False

    attempts: AsyncIterator[AbstractContextManager[object]] = aiter(
        stamina.retry_context(
            on=pause,
            attempts=limits.max_attempts,
            timeout=None,  # the deadline ends the attempts
            wait_initial=limits.backoff_s,
            wait_max=max(limits.backoff_s, _MAX_BACKOFF_S),
            wait_jitter=limits.backoff_s,
        )
    )
    return attempts
