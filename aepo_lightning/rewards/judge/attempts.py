"""Another attempt after a pause, for failures that may pass, until there are no more attempts or no more time.

A server at which many claims in a row came to nothing is left alone for a while.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from aepo_lightning.attempts import attempts
from aepo_lightning.circuit_breaker import CircuitBreaker, CircuitOpenError
from aepo_lightning.event_loop import CutOffError, cut_off
from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.settings import JudgeLimits

T = TypeVar("T")

_DOWN = (AbstentionKind.UNREACHABLE, AbstentionKind.TIMEOUT, AbstentionKind.FAILED)


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


def breaker_of(limits: JudgeLimits) -> CircuitBreaker:
    """Return the circuit breaker of a server: a judge that works answers every claim, so a run of failures opens it."""
    return CircuitBreaker(
        min_failures=limits.breaker_failures, reset_s=limits.breaker_reset_s, share=None, window_s=math.inf
    )


async def unless_down(
    ask: Callable[[], Awaitable[T]], breaker: CircuitBreaker, place: AbstractAsyncContextManager[object]
) -> T:
    """Return what asking returns, with its further attempts.

    Args:
        ask: Asks about one claim.
        breaker: Of the server. It counts how the claim ended; a server that refuses or talks nonsense is there.
        place: To wait for before asking.

    Raises:
        JudgeFailure: That of the claim, or that nobody was asked.
    """
    try:
        breaker.check()
        async with place:
            with breaker.permit() as permit:
                try:
                    answer = await ask()
                except JudgeFailure as failure:
                    permit.is_failure = failure.kind in _DOWN
                    raise
                permit.is_failure = False
                return answer
    except CircuitOpenError:
        failed = f"{breaker.min_failures} claims in a row had failed"
        text = f"was not asked: {failed}, and it is left alone for {breaker.reset_s:g} s at a time"
        raise JudgeFailure(AbstentionKind.OUTAGE, text) from None
