"""When a provider is left alone, and for how long."""

import math

import pytest

from aepo_lightning.circuit_breaker import CircuitBreaker, CircuitOpenError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def breaker_with(clock, min_failures=2, share=0.5):
    return CircuitBreaker(min_failures=min_failures, reset_s=10.0, share=share, window_s=60.0, clock=clock)


def end(breaker, *failures):
    """Make calls one after another; None is a call that was cancelled."""
    for is_failure in failures:
        with breaker.permit() as permit:
            permit.is_failure = is_failure


def is_open(breaker):
    try:
        end(breaker, None)
    except CircuitOpenError:
        return True
    return False


def test_enough_failures_open_the_circuit_and_a_trial_closes_it(clock):
    breaker = breaker_with(clock)
    end(breaker, True)
    assert not is_open(breaker)
    end(breaker, True)
    assert is_open(breaker)
    clock.now = 9.9
    assert is_open(breaker)
    clock.now = 10.0
    end(breaker, True)  # one call is let through, and fails: another ten seconds
    clock.now = 19.9
    assert is_open(breaker)
    clock.now = 20.0
    end(breaker, False)
    end(breaker, True)
    assert not is_open(breaker), "what was before the trial is forgotten"


def test_only_one_call_tries(clock):
    breaker = breaker_with(clock)
    end(breaker, True, True)
    clock.now = 10.0
    with breaker.permit():
        assert is_open(breaker)


def test_a_trial_that_was_cancelled_lets_the_next_one_try(clock):
    breaker = breaker_with(clock)
    end(breaker, True, True)
    clock.now = 10.0
    end(breaker, None)
    end(breaker, False)
    assert not is_open(breaker)


def test_calls_that_hang_together_are_a_share_of_those_that_were_answered_meanwhile(clock):
    breaker = breaker_with(clock, min_failures=10)
    end(breaker, *[False] * 95)
    clock.now = 30.0
    end(breaker, *[True] * 94)
    assert not is_open(breaker)
    end(breaker, True)
    assert is_open(breaker), "95 of 190 calls are the share of a half"


def test_few_calls_that_all_fail_leave_it_closed(clock):
    breaker = breaker_with(clock, min_failures=3)
    end(breaker, True, True)
    assert not is_open(breaker)


def test_calls_before_the_window_count_no_more(clock):
    breaker = breaker_with(clock)
    end(breaker, True)
    clock.now = 60.0
    end(breaker, True)
    assert not is_open(breaker)
    breaker = breaker_with(clock)
    end(breaker, *[False] * 100)
    clock.now = 120.0
    end(breaker, True, True)
    assert is_open(breaker)


def test_calls_that_were_under_way_change_nothing_while_it_is_open(clock):
    breaker = breaker_with(clock)
    with breaker.permit() as late_success, breaker.permit() as late_failure:
        end(breaker, True, True)
        clock.now = 5.0
        late_success.is_failure, late_failure.is_failure = False, True
    assert is_open(breaker)
    clock.now = 10.0
    assert not is_open(breaker)


def test_a_run_of_failures_opens_it_however_many_calls_were_answered_before(clock):
    breaker = CircuitBreaker(min_failures=3, reset_s=10.0, share=None, window_s=math.inf, clock=clock)
    end(breaker, *[False] * 100, True, True, False, True, None, True)
    assert not is_open(breaker)
    clock.now = 1e6
    end(breaker, True)
    assert is_open(breaker)
    clock.now += 10.0
    end(breaker, False, True, True)
    assert not is_open(breaker)


def test_a_call_that_could_not_pass_is_refused_before_it_asks_for_leave(clock):
    breaker = breaker_with(clock)
    breaker.check()
    end(breaker, True, True)
    with pytest.raises(CircuitOpenError):
        breaker.check()
    clock.now = 10.0
    breaker.check()
    with breaker.permit(), pytest.raises(CircuitOpenError):
        breaker.check()


def test_cancelled_calls_do_not_count_and_zero_never_opens(clock):
    breaker = breaker_with(clock)
    end(breaker, None, True, None, None)
    assert not is_open(breaker)
    never = breaker_with(clock, min_failures=0)
    end(never, *[True] * 100)
    assert not is_open(never)
