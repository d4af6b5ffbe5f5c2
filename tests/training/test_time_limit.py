"""Training ends between two iterations where another one would exceed the limit."""

import logging

import pytest

from aepo_lightning.training.time_limit import RemainingTime, TimeLimit
from tests.support.training import make_datamodule, make_module, make_run, small_policy


class Clock:
    """Moves by what each iteration takes."""

    def __init__(self, *seconds):
        self.times = [0.0]
        for each in seconds:
            self.times.append(self.times[-1] + each)

    def __call__(self):
        return self.times.pop(0)


def iterations(limit, seconds):
    """Return how many iterations are made of those that take so many seconds each."""
    remaining = RemainingTime(float(limit), Clock(*seconds))
    return next((number for number, _ in enumerate(seconds, 1) if not remaining.is_enough()), len(seconds))


@pytest.mark.parametrize(
    ("limit", "seconds", "expected"),
    [
        (35, [10, 10, 10, 10], 3),  # at 20 another 10 fit, at 30 they do not
        (35, [20, 5, 5, 5], 1),  # the longest counts: 20 + 20
        (45, [20, 5, 5, 5], 3),  # 20 + 20 fit, 25 + 20 do just so, 30 + 20 do not
        (1, [10, 10], 1),  # one is made in any case
        (1000, [10, 10, 10, 10], 4),  # all that were asked for
        (61, [20, 5, 5, 5, 5, 5, 5, 5, 5, 5], 9),  # 40 + 20 fit, then 20 is forgotten; 60 + 5 do not
    ],
)
def test_no_iteration_begins_that_would_exceed_the_limit(limit, seconds, expected):
    assert iterations(limit, seconds) == expected


def test_a_run_ends_as_it_does_at_its_last_iteration(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="aepo_lightning")
    module = make_module(small_policy(num_hidden_layers=1))
    callback = TimeLimit(10.0, Clock(20, 20, 20))
    run = make_run(tmp_path, module, make_datamodule(module.policy), callbacks=[callback], max_epochs=3).fit()
    assert run.trainer.current_epoch == 1
    assert run.trainer.state.finished
    assert "Training ends after 1 iterations: 20 s of 10 s are spent, and another may take 20 s." in caplog.messages
