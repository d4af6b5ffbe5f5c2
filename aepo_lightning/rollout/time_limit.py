"""The time that a whole trajectory may take, and where those stopped that were over."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aepo_lightning.contracts.generation import StopReason
from aepo_lightning.rollout.chain import Chain
from aepo_lightning.rollout.record import EventSink, SeedPath, timeout_event


async def run_within(
    timeout_s: float | None, chain: Chain, run: Callable[[], Awaitable[StopReason]], on_event: EventSink | None
) -> StopReason:
    """Run a chain to its end, or until its time is over, and report that.

    The time starts when the chain does, and anew when it is taken up after a crash.

    Args:
        timeout_s: None is no limit.
        chain: Whose place is reported.
        run: Runs it and returns why it ended. Is cancelled when the time is over.
        on_event: Called where the time is over.
    """
    if timeout_s is None:
        return await run()
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await run()
    except TimeoutError:
        if not limit.expired():
            raise
    if on_event is not None:
        on_event(timeout_event(chain.seed_path, chain.turn, chain.num_tool_calls))
    return StopReason.TIMEOUT


def was_over(timeouts: Mapping[SeedPath, tuple[int, int]], chain: Chain) -> bool:
    """Return whether a recorded chain ran out of time where this one stands now."""
    return timeouts.get(chain.seed_path) == (chain.turn, chain.num_tool_calls)
