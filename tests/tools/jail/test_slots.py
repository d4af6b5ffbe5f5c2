"""The queue for workers: order, bounds, demotion, and calls that go away."""

import asyncio
import threading

import pytest

from aepo_lightning.tools.jail.execution import PoolBusyError
from aepo_lightning.tools.jail.slots import SlotQueue


def queue_of(*workers, max_active=9, max_waiting=9):
    queue = SlotQueue(max_active=max_active, max_waiting=max_waiting)
    for worker in workers:
        queue.add(worker)
    return queue


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_calls_are_served_in_the_order_in_which_they_came():
    async def scenario():
        queue = queue_of("a")
        served = []

        async def call(number):
            lease = await queue.acquire()
            served.append(number)
            await asyncio.sleep(0)
            queue.release(lease, is_usable=True)

        await asyncio.gather(*(call(number) for number in range(5)))
        return served

    assert asyncio.run(scenario()) == [0, 1, 2, 3, 4]


def test_no_more_are_active_than_allowed_until_one_is_demoted():
    async def scenario():
        queue = queue_of("a", "b", "c", max_active=1)
        first = await queue.acquire()
        second = asyncio.create_task(queue.acquire())
        await settle()
        assert not second.done()
        first.demote()
        first.demote()  # counts once
        await settle()
        assert second.done()
        third = asyncio.create_task(queue.acquire())
        await settle()
        assert not third.done()
        queue.release(first, is_usable=True)  # demoted long ago: makes no room
        await settle()
        assert not third.done()
        queue.release(second.result(), is_usable=True)
        return (await third).worker

    assert asyncio.run(scenario()) in "abc"


def test_a_worker_that_is_not_usable_is_not_handed_out():
    async def scenario():
        queue = queue_of("a")
        queue.release(await queue.acquire(), is_usable=False)
        waiting = asyncio.create_task(queue.acquire())
        await settle()
        assert not waiting.done()
        queue.add("b")
        return (await waiting).worker

    assert asyncio.run(scenario()) == "b"


def test_a_call_cancelled_when_it_was_just_served_gives_its_worker_back():
    async def scenario():
        queue = queue_of()
        waiting = asyncio.create_task(queue.acquire())
        await settle()
        queue.add("a")  # assigned now; the task has not woken yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await asyncio.wait_for(queue.acquire(), 60)).worker

    assert asyncio.run(scenario()) == "a"


def test_a_full_queue_says_so_and_a_cancelled_call_makes_room():
    async def scenario():
        queue = queue_of(max_waiting=1)
        waiting = asyncio.create_task(queue.acquire())
        await settle()
        with pytest.raises(PoolBusyError, match="1 calls wait already"):
            await queue.acquire()
        assert queue.num_waiting == 1
        waiting.cancel()
        await settle()
        assert queue.num_waiting == 0

    asyncio.run(scenario())


def test_failing_refuses_those_who_wait_and_those_who_come():
    async def scenario():
        queue = queue_of()
        waiting = asyncio.create_task(queue.acquire())
        await settle()
        queue.fail(OSError("broken"))
        for call in (waiting, queue.acquire()):
            with pytest.raises(OSError, match="broken"):
                await call

    asyncio.run(scenario())


def test_loops_in_threads_share_workers():
    queue = queue_of("a", "b", max_waiting=99)
    held, most = [], []

    async def calls():
        for _ in range(50):
            lease = await queue.acquire()
            held.append(lease.worker)
            most.append(len(set(held)) == len(held) <= 2)
            await asyncio.sleep(0)
            held.remove(lease.worker)
            queue.release(lease, is_usable=True)

    threads = [threading.Thread(target=lambda: asyncio.run(calls())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 200
    assert all(most)


def test_a_loop_that_ended_while_it_waited_takes_no_worker():
    queue = queue_of()

    async def leave():
        task = asyncio.create_task(queue.acquire())
        await settle()
        assert not task.done()

    asyncio.run(leave())
    queue.add("a")
    assert asyncio.run(queue.acquire()).worker == "a"


def test_a_loop_that_was_closed_while_it_waited_takes_no_worker():
    queue = queue_of()
    loop = asyncio.new_event_loop()
    waits = loop.create_task(queue.acquire())
    loop.run_until_complete(settle())
    loop.close()
    queue.add("a")
    assert asyncio.run(queue.acquire()).worker == "a"
    assert not waits.done()
    waits._log_destroy_pending = False
