"""Further attempts after pauses, on a clock that jumps."""

import asyncio
from itertools import pairwise

import pytest

from aepo_lightning.rewards.judge.attempts import with_attempts
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
