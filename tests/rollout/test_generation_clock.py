import asyncio

import pytest

from aepo_lightning.rollout.generation_clock import GenerationClock
from tests.support.skipped_time import run_skipping


def clock_of(loop):
    return GenerationClock(clock=loop.time)


def test_idle_is_when_nothing_is_generated():
    async def chain(clock, *waits):
        for index, seconds in enumerate(waits):
            if index % 2:
                await asyncio.sleep(seconds)  # a tool
            else:
                with clock.generation():
                    await asyncio.sleep(seconds)

    async def rollout():
        clock = clock_of(asyncio.get_running_loop())
        with clock.rollout():
            await asyncio.gather(chain(clock, 2, 5, 1), chain(clock, 3, 1, 1))
        with clock.rollout():
            await chain(clock, 1, 1)
        return clock.take(), clock.take()

    # 0-2 and 7-8 of one chain, 0-3 and 4-5 of the other: 5 of 8 seconds. Then 1 of 2.
    assert run_skipping(rollout()) == (pytest.approx((4.0, 10.0)), (0.0, 0.0))


def test_a_rollout_that_fails_is_not_counted_and_no_generation_of_it_goes_on():
    async def fail(clock):
        with clock.rollout(), clock.generation():
            await asyncio.sleep(1)
            raise ValueError("broken")

    async def rollout():
        clock = clock_of(asyncio.get_running_loop())
        with pytest.raises(ValueError, match="broken"):
            await fail(clock)
        with clock.rollout():
            await asyncio.sleep(2)
        return clock.take()

    assert run_skipping(rollout()) == pytest.approx((2.0, 2.0))
