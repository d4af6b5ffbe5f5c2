"""Further attempts after pauses, on a clock that jumps."""

import asyncio
from itertools import pairwise

import pytest

from aepo_lightning.rewards.judge.attempts import breaker_of, unless_down, with_attempts
from aepo_lightning.rewards.judge.failures import AbstentionKind, JudgeFailure
from aepo_lightning.rewards.judge.settings import JudgeLimits
from tests.support.skipped_time import run_skipping


def busy(retry_after_s=None, can_pass=True):
    return JudgeFailure(AbstentionKind.BUSY, "is busy", can_pass=can_pass, retry_after_s=retry_after_s)


def attempted(*outcomes, takes_s=0.0, **limits):
    """Return what came out, and when each attempt began."""
    left, times = list(outcomes), []

    async def attempt():
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(takes_s)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run():
        try:
            return await with_attempts(attempt, JudgeLimits(**limits), "a judge")
        except JudgeFailure as failure:
            return failure.kind

    return run_skipping(run()), times


def test_what_may_pass_is_tried_again_after_growing_pauses():
    found, times = attempted(busy(), busy(), busy(), "verdict", max_attempts=4, backoff_s=1.0)
    assert found == "verdict"
    pauses = [after - before for before, after in pairwise(times)]
    assert [1.0 <= pauses[0] <= 2.0, 2.0 <= pauses[1] <= 3.0, 4.0 <= pauses[2] <= 5.0] == [True] * 3


@pytest.mark.parametrize(
    ("failures", "num"),
    [([busy()] * 5, 3), ([busy(can_pass=False)], 1), ([busy(), busy(can_pass=False)], 2)],
    ids=["attempts used up", "cannot pass", "cannot pass any more"],
)
def test_the_last_failure_stands(failures, num):
    found, times = attempted(*failures, max_attempts=3)
    assert (found, len(times)) == ("busy", num)


def test_a_server_gets_the_pause_that_it_asks_for():
    assert attempted(busy(7.0), "verdict", backoff_s=0.0) == ("verdict", [0.0, 7.0])


@pytest.mark.parametrize("limits", [{"max_retry_after_s": 20.0}, {"deadline_s": 25.0}])
def test_a_pause_beyond_the_limits_is_not_waited_for(limits):
    assert attempted(busy(30.0), "verdict", **({"max_retry_after_s": 60.0, "deadline_s": 99.0} | limits)) == (
        "busy",
        [0.0],
    )


def test_the_deadline_holds_over_all_attempts():
    found, times = attempted(busy(), busy(), "verdict", takes_s=10.0, deadline_s=25.0, backoff_s=0.0)
    assert (found, times) == ("timeout", [0.0, 10.0, 20.0])


def asked(*claims, num_places=9, **limits):
    """Ask about claims, each given as when, how it ends and how long it takes; return what came of each, and when."""

    async def run():
        loop, places = asyncio.get_running_loop(), asyncio.Semaphore(num_places)
        breaker = breaker_of(JudgeLimits(breaker_failures=2, breaker_reset_s=30.0, **limits))
        breaker.clock = loop.time

        async def one(at, ends_as, takes_s=0.0):
            async def ask():
                await asyncio.sleep(takes_s)
                if ends_as != "verdict":
                    raise JudgeFailure(AbstentionKind(ends_as), "")
                return ends_as

            await asyncio.sleep(at)
            try:
                found = await unless_down(ask, breaker, places)
            except JudgeFailure as failure:
                found = str(failure.kind)
            return found, loop.time()

        return await asyncio.gather(*(one(*each) for each in claims))

    return run_skipping(run())


@pytest.mark.parametrize("kind", ["unreachable", "timeout", "failed"])
def test_a_server_that_is_down_is_left_alone_for_a_while_and_then_asked_once(kind):
    found = asked(
        (0, kind), (1, kind), (2, "verdict"), (31, kind, 5), (33, "verdict"), (65, "verdict"), (66, "verdict")
    )
    assert found == [
        (kind, 0),
        (kind, 1),
        ("outage", 2),
        (kind, 36),  # the one to see
        ("outage", 33),
        ("outage", 65),  # another 30 seconds
        ("verdict", 66),
    ]


def test_a_server_that_says_anything_is_there():
    kinds = [kind for kind in AbstentionKind if kind not in ("unreachable", "timeout", "failed", "outage")]
    for kind in [*kinds, "verdict"]:
        found = asked((0, "timeout"), (1, kind), (2, "timeout"), (3, "verdict"))
        assert [each for each, _ in found] == ["timeout", kind, "timeout", "verdict"]


def test_claims_that_wait_for_a_place_are_answered_when_the_server_turns_out_to_be_down():
    found = asked(*[(0, "timeout", 10)] * 4, (51, "timeout", 79), (60, "verdict"), num_places=1)
    assert found == [("timeout", 10), ("timeout", 20), ("outage", 20), ("outage", 20), ("timeout", 130), ("outage", 60)]
