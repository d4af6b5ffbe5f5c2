"""A deadline that holds whatever the work does: work that does not stop when told to is left behind."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE_S = 1.0
"""How long cancelled work may tidy up."""


class CutOffError(TimeoutError):
    """The deadline has passed."""


async def cut_off(work: Coroutine[Any, Any, T], deadline_s: float, name: str) -> T:
    """Return what work returns, if it does so before its deadline.

    Args:
        work: Runs in a task of its own. Cancelling the caller cancels it.
        deadline_s: When to cancel it. If it has not ended a second later, nobody waits for it any more.
        name: Whose work it is, for the log.

    Raises:
        CutOffError: If the deadline has passed.
        Exception: What the work raised. Its own cancellation and attempts to end the process count as failures, too.
    """
    task = asyncio.ensure_future(_contain(work))
    is_in_time = False
    try:
        await asyncio.wait({task}, timeout=deadline_s)
        is_in_time = task.done()
    finally:
        if not task.done():
            await _stop(task, name)
    if not is_in_time:
        raise CutOffError(f"it took longer than {deadline_s:g} s.")
    if task.cancelled():
        raise RuntimeError("it cancelled itself.")
    error = task.exception()
    if error is None or isinstance(error, Exception):
        return task.result()
    raise RuntimeError(f"it raised {error!r}.") from error


async def _contain(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except SystemExit as error:  # the loop would pass it on, and the run would end
        raise RuntimeError("it tried to end the process.") from error


async def _stop(task: asyncio.Task[Any], name: str) -> None:
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=_GRACE_S)
    finally:
        if task.done():
            task.cancelled() or task.exception()  # nobody else asks
        else:
            # The end of the event loop must not wait for it either, nor wonder.
            asyncio._unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            logger.warning("A call of %s goes on after it was cancelled; nobody waits for it any more.", name)
