"""Judging a run from numbers alone: worked by hand, and laws that hold for every series."""

import math
from dataclasses import replace
from random import Random

import pytest

from aepo_lightning.callbacks.stability import KINDS, StabilityWatch, fit_line
from aepo_lightning.callbacks.stability_limits import Limits, Observation
from aepo_lightning.errors import ConfigError

# The line through 1, 2, 4: slope 3/2, around it +-1/6, so a spread of sqrt(1/6) with one degree of freedom, and an
# error of the slope of sqrt(1/6 / 2).
LINE = (1.5, math.sqrt(1 / 12), math.sqrt(1 / 6))


def judge(entropies, limits=None, rewards=None, **others):
    """The kinds of alarms of each iteration."""
    watch = StabilityWatch(limits or Limits())
    columns = {"reward": rewards or [0.2] * len(entropies), **others}
    rows = [{name: values[place] for name, values in columns.items()} for place in range(len(entropies))]
    return [
        set(watch.observe(Observation(entropy=each, **row)).kinds) for each, row in zip(entropies, rows, strict=True)
    ]


def noisy(rng, level, spread, number):
    return [level * (1 + spread * rng.uniform(-1, 1)) for _ in range(number)]


# By hand ------------------------------------------------------------------------------------------------------------


def test_a_line_is_that_of_least_squares():
    line = fit_line([1.0, 2.0, 4.0])
    assert (line.slope, line.slope_error, line.spread) == pytest.approx(LINE)
    assert fit_line([1.0, 2.0]) is None


def test_the_band_is_relative_to_the_median_of_the_first_iterations():
    watch = StabilityWatch(Limits(minimum_nats=0.01, maximum_nats=5.0))
    first = watch.observe(Observation(entropy=0.42))
    assert (watch.baseline, first.low, first.high) == (None, pytest.approx(0.09), pytest.approx(0.882))
    watch.observe(Observation(entropy=0.4))
    verdict = watch.observe(Observation(entropy=0.6))
    assert (watch.baseline, verdict.low, verdict.high) == pytest.approx((0.42, 0.126, 0.63))
    watch.observe(Observation(entropy=2.0))
    assert watch.baseline == 0.42


def test_what_jumps_away_within_the_first_iterations_is_alarming_and_no_part_of_the_baseline():
    watch = StabilityWatch()
    found = [set(watch.observe(Observation(entropy=each)).kinds) for each in (0.2, 2.2, 2.2, 0.2, 0.21)]
    assert found == [set(), set(), {"eruption"}, set(), set()]
    assert watch.baseline == 0.2
    assert judge([1.0, 0.2, 0.1])[-1] == {"collapse"}


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        # Band of a baseline of 1: 0.3 to 1.5; at once beyond 0.3 / 1.4 = 0.214 and 1.5 * 1.4 = 2.1.
        pytest.param([1.6, 1.6], [set(), {"eruption"}], id="above, with patience"),
        pytest.param([1.6, 1.0, 1.6], [set()] * 3, id="above, but not in a row"),
        pytest.param([2.2], [{"eruption"}], id="far above"),
        pytest.param([1.5, 1.5], [set(), set()], id="the bound itself"),
        pytest.param([0.25, 0.25], [set(), {"collapse"}], id="below, with patience"),
        pytest.param([0.2], [{"collapse"}], id="far below"),
        pytest.param([0.3, 0.3], [set(), set()], id="the lower bound itself"),
        pytest.param([math.nan, 1.6, math.nan, 1.6], [set(), set(), set(), {"eruption"}], id="gaps end nothing"),
    ],
)
def test_levels_are_judged_against_the_band(series, expected):
    limits = Limits(max_spread=9.0, max_drift=9.0)
    assert judge([1.0, 1.0, 1.0, *series], limits)[3:] == expected


def test_absolute_bounds_need_no_baseline():
    limits = Limits(num_baseline=99, minimum_nats=0.1, maximum_nats=2.0, patience=2)
    assert judge([0.05, 0.05, 3.0, 3.0], limits) == [set(), {"collapse"}, set(), {"eruption"}]


@pytest.mark.parametrize(
    ("rewards", "is_quiet"),
    [
        pytest.param([0.2] * 8, False, id="for nothing"),
        pytest.param([0.2] * 3 + [0.9] * 5, True, id="solved"),
        pytest.param([0.1, 0.1, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7], True, id="learning"),
        pytest.param([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], False, id="unlearning"),
        pytest.param([math.nan] * 8, False, id="no reward"),
    ],
)
def test_low_entropy_is_no_collapse_where_rewards_pay_for_it(rewards, is_quiet):
    found = judge([1.0, 1.0, 1.0, 0.25, 0.25, 0.24, 0.23, 0.22], rewards=rewards)
    assert (not any("collapse" in each for each in found)) == is_quiet


def test_below_the_minimum_only_a_solved_task_is_none():
    learning = judge([1.0, 1.0, 1.0, 0.001, 0.001], rewards=[0.1, 0.1, 0.1, 0.5, 0.7])
    assert learning[-1] == {"collapse"}
    assert judge([1.0, 1.0, 1.0, 0.001, 0.001], rewards=[0.9] * 5)[-1] == set()


def test_a_course_is_seen_within_the_band():
    # By 0.13 an iteration: 0.52 of the baseline over five, and no point is outside 0.3 to 1.6.
    limits = Limits(relative_high=1.6)
    assert judge([1.0, 1.0, 1.0, 1.13, 1.26, 1.39, 1.52], limits)[-1] == {"eruption"}
    assert judge([1.0, 1.0, 1.0, 0.87, 0.74, 0.61, 0.48], limits)[-1] == {"collapse"}
    # By the same from end to end, but not along a line: 4 standard errors are wanted.
    assert judge([1.0, 1.0, 1.0, 1.4, 0.9, 1.45, 1.2])[-1] == set()


def test_jumps_are_seen_within_the_band():
    assert judge([1.0, 1.0, 1.0, 1.4, 0.5, 1.4, 0.5])[-1] == {"unstable"}


@pytest.mark.parametrize(
    ("name", "usual", "bad", "kind"),
    [
        ("kl", 0.01, 1.1, "update"),
        ("clip_fraction", 0.02, 0.31, "update"),
        ("ratio_tail", 1.3, 21.0, "update"),
        ("repetition", 0.2, 0.61, "repetition"),  # 0.2 + 0.5 * (1 - 0.2) = 0.6
        ("zero_variance", 0.2, 0.95, "no_signal"),
    ],
)
def test_every_other_figure_raises_its_own_alarm_after_patience(name, usual, bad, kind):
    values = [usual] * 3 + [bad, usual, bad, bad]
    assert judge([1.0] * 7, **{name: values}) == [set()] * 6 + [{kind}]


def test_equal_rewards_are_no_alarm_once_the_task_is_solved():
    assert judge([1.0] * 4, rewards=[1.0] * 4, zero_variance=[1.0] * 4) == [set()] * 4
    assert judge([1.0] * 4, rewards=[-1.0] * 4, zero_variance=[1.0] * 4)[-1] == {"no_signal"}


def test_the_reason_has_the_numbers():
    watch = StabilityWatch()
    for entropy in (1.0, 1.0, 1.0, 1.6):
        watch.observe(Observation(entropy=entropy))
    (alarm,) = watch.observe(Observation(entropy=1.7)).alarms
    assert alarm.reason == "entropy is 1.7 nats, above 1.5 for 2 iterations in a row, and began at 1"


# Laws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1e-2, 0.05, 0.7, 3.0, 11.0])
def test_a_constant_series_is_calm_and_so_is_small_noise(level):
    assert judge([level] * 30) == [set()] * 30
    for seed in range(20):
        assert judge(noisy(Random(seed), level, 0.15, 40)) == [set()] * 40


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_a_steady_drift_is_caught_whatever_its_direction_and_scale(factor):
    for seed in range(10):
        level, rng = Random(seed).choice([0.02, 0.6, 4.0]), Random(seed)
        series = noisy(rng, level, 0.05, 5) + [level * factor**n * (1 + rng.uniform(-0.05, 0.05)) for n in range(1, 20)]
        found = set().union(*judge(series))
        assert ("eruption" if factor > 1 else "collapse") in found
        assert ("collapse" if factor > 1 else "eruption") not in found


def test_what_is_not_finite_changes_nothing():
    rng = Random(0)
    series = [*noisy(rng, 1.0, 0.3, 10), 1.7, 1.8, 0.1, 0.1, 2.5, 1.0]
    plain = judge(series)
    for gap in (math.nan, math.inf, -math.inf):
        with_gaps = judge([each for value in series for each in (value, gap)], rewards=[0.2, gap] * len(series))
        assert with_gaps[::2] == plain
        assert not any(with_gaps[1::2])


def test_the_unit_of_entropy_does_not_matter_to_relative_limits():
    rng = Random(1)
    series = [rng.uniform(0.05, 3.0) for _ in range(60)]
    limits = Limits(minimum_nats=1e-9)
    assert judge(series, limits) == judge([8 * each for each in series], limits)
    assert any(judge(series, limits))


def test_too_few_points_raise_no_relative_alarm():
    assert judge([1.0, 100.0]) == [set(), set()]
    assert judge([1.0, 0.01]) == [set(), set()]
    assert StabilityWatch().observe(Observation()).alarms == ()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_state_goes_on_as_if_it_had_not_been_cut(cut):
    rng = Random(cut)
    seen = [Observation(entropy=rng.uniform(0.1, 2), reward=rng.random(), kl=rng.uniform(0, 2)) for _ in range(12)]
    whole, first, second = StabilityWatch(), StabilityWatch(), StabilityWatch()
    expected = [whole.observe(each) for each in seen]
    found = [first.observe(each) for each in seen[:cut]]
    second.load_state_dict(first.state_dict())
    assert found + [second.observe(each) for each in seen[cut:]] == expected
    assert any(each.alarms for each in expected)


def test_after_a_restart_patience_begins_anew_but_the_baseline_stays():
    watch = StabilityWatch()
    for entropy in (1.0, 1.0, 1.0, 1.6):
        assert not watch.observe(Observation(entropy=entropy)).alarms
    watch.restart()
    assert watch.baseline == 1.0
    assert not watch.observe(Observation(entropy=1.6)).alarms
    assert watch.observe(Observation(entropy=1.6)).kinds == {"eruption"}


def test_suspicion_comes_before_the_alarm_and_ends_with_its_cause():
    watch = StabilityWatch()
    found = [watch.observe(Observation(entropy=each)).is_suspicious for each in (1.0, 1.0, 1.0, 1.6, 1.0)]
    assert found == [False, False, False, True, False]


def test_kinds_are_all_there_are():
    assert len(set(KINDS)) == 6  # each of them is raised by a test above


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_baseline": 0}, "`num_baseline` must be at least 1"),
        ({"window": 2}, "`window` must be at least 3"),
        ({"minimum_nats": 0.0}, "`minimum_nats` must be positive"),
        ({"max_kl": math.nan}, "`max_kl` must be positive"),
        ({"relative_low": 1.2}, "low < 1 < high"),
        ({"until_reward": math.nan}, "`until_reward` must be None or finite"),
        ({"minimum_nats": 2.0, "maximum_nats": 1.0}, "`minimum_nats` must be below `maximum_nats`"),
    ],
)
def test_refuses_limits_without_meaning(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(Limits(), **changes)
