"""Another attempt after a pause, for failures that may pass."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import stamina

_MAX_BACKOFF_S = 30.0


def attempts(
    may_pass: Callable[[Exception], bool],
    *,
    max_attempts: int,
    backoff_s: float,
    ends_at: float,
    max_retry_after_s: float = math.inf,
) -> AsyncIterator[AbstractContextManager[object]]:
    """Yield a context for each attempt; it swallows an error that another attempt before the deadline follows.

    An error whose `retry_after_s` is a number asks for this pause. Where that is too long, or ends after the deadline,
    there is no other attempt.

    Args:
        may_pass: Of an error: whether it is worth another attempt.
        max_attempts: The first included.
        backoff_s: Before the second attempt, without the jitter; doubled for each further one.
        ends_at: The deadline, by the clock of the running event loop. Whoever runs the attempts ends them there.
        max_retry_after_s: The longest pause that an error gets.
    """
    loop = asyncio.get_running_loop()

    def pause(error: Exception) -> bool | float:
        if not may_pass(error):
            return False
        asked: float | None = getattr(error, "retry_after_s", None)
        if asked is None:
            return True
        return asked if asked <= max_retry_after_s and loop.time() + asked < ends_at else False

    contexts: AsyncIterator[AbstractContextManager[object]] = aiter(
        stamina.retry_context(
            on=pause,
            attempts=max_attempts,
            timeout=None,  # the deadline ends the attempts
            wait_initial=backoff_s,
            wait_max=max(backoff_s, _MAX_BACKOFF_S),
            wait_jitter=backoff_s,
        )
    )
    return contexts
