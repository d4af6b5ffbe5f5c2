"""What becomes of recorded runs, and when the guard would have spoken."""

import pytest

from aepo_lightning.callbacks.stability_limits import Limits
from benchmarks import guard
from benchmarks.support.guard_series import BETWEEN, COLLAPSED, HEALTHY, judge, judge_file, onset_of, state_of


@pytest.mark.parametrize(
    ("rates", "state"),
    [
        ([0.4, 0.5, 0.8], HEALTHY),
        ([0.4, 0.8, 0.4], HEALTHY),  # half of the best is left
        ([0.4, 0.8, 0.3, 0.8], BETWEEN),
        ([0.4, 0.8, 0.1, 0.06], COLLAPSED),  # 0.08 is a tenth of the best
        ([0.4, 0.8, 0.1, 0.07], BETWEEN),
    ],
)
def test_what_became_of_a_run_is_told_by_held_out_questions(rates, state):
    assert state_of(rates) == state


@pytest.mark.parametrize(
    ("rewards", "onset"), [([0.1, -0.5, 0.1, -0.5, -1.0], 3), ([0.1, 0.2], None), ([-1.0, -1.0], 0), ([0.3, 0.0], None)]
)
def test_the_onset_is_where_rewards_begin_to_stay_low(rewards, onset):
    assert onset_of(rewards) == onset


def test_a_run_is_judged_as_if_it_were_going_on():
    entropy = [1.0, 1.0, 1.0, 1.0, 1.6, 1.6, 1.6]
    row = {"bed": "b", "part": "check", "pass@1": [0.5, 0.5, 0.0, 0.0], "entropy": entropy}
    row |= {"reward": [0.1, 0.1, 0.1, 0.1, -1.0, -1.0, -1.0], "kl": [None] * 7}
    found = judge(row, Limits())
    assert (found.state, found.onset, found.first_alarm, found.delay, found.kinds) == (
        COLLAPSED,
        4,
        5,
        1,
        ("eruption",),
    )


@pytest.mark.slow
def test_the_committed_series_meet_the_goals():
    figures, goals = guard.recorded(judge_file(guard.COMMITTED, Limits()))
    assert figures
    for value, sign, bound in goals.values():
        assert value <= bound if sign == "<=" else value >= bound
