"""What is read off a curve at equal budgets, by hand."""

import numpy as np
import pytest

from benchmarks.support.comparison.curves import (
    drop_up_to,
    held_out_curve,
    is_short,
    iteration_curve,
    mean_up_to,
    resampled,
    restlessness_up_to,
    step_mean_up_to,
    value_at,
)

# Three iterations of two optimiser steps each; validation before the first, after the second and after the third.
RECORD = {
    "iterations": {
        "step": [0, 2, 4],
        "rollout/num_generated_tokens": [100, 50, 50],
        "rollout/num_answered_calls": [10, 20, 30],
        "train/entropy": [1.0, None, 0.5],
    },
    "held_out": {"step": [0, 4, 6], "val/pass@1": [0.0, 0.6, 0.2], "val/pass@4": [None, 0.8, 0.9]},
}


def test_a_validation_stands_where_its_weights_had_been_paid_for():
    at, values = held_out_curve(RECORD, "val/pass@1", "tokens")
    assert (at.tolist(), values.tolist()) == ([0, 150, 200], [0.0, 0.6, 0.2])
    at, values = held_out_curve(RECORD, "val/pass@4", "calls")
    assert (at.tolist(), values.tolist()) == ([30, 60], [0.8, 0.9])
    assert held_out_curve(RECORD, "val/unknown", "calls")[0].size == 0


def test_values_between_validations_lie_on_a_line_and_the_last_one_stays():
    curve = held_out_curve(RECORD, "val/pass@1", "tokens")
    assert value_at(*curve, 75) == pytest.approx(0.3)
    assert value_at(*curve, 175) == pytest.approx(0.4)
    assert value_at(*curve, 900) == pytest.approx(0.2)


def test_the_area_by_hand():
    curve = held_out_curve(RECORD, "val/pass@1", "tokens")
    # up to 150 a triangle of height 0.6; up to 200 also a trapezium from 0.6 to 0.2; beyond, 0.2
    assert mean_up_to(*curve, 150) == pytest.approx(0.3)
    assert mean_up_to(*curve, 200) == pytest.approx((0.3 * 150 + 0.4 * 50) / 200)
    assert mean_up_to(*curve, 400) == pytest.approx((0.3 * 150 + 0.4 * 50 + 0.2 * 200) / 400)
    assert mean_up_to(*curve, 75) == pytest.approx(0.15)
    # a curve that begins late has its first value until then
    assert mean_up_to(np.array([10.0]), np.array([0.7]), 20) == pytest.approx(0.7)


def test_equal_tokens_and_equal_calls_are_different_places():
    assert value_at(*held_out_curve(RECORD, "val/pass@1", "calls"), 15) == pytest.approx(0.3)
    assert mean_up_to(*held_out_curve(RECORD, "val/pass@1", "calls"), 60) == pytest.approx((0.3 * 30 + 0.4 * 30) / 60)


def test_means_of_iterations_are_weighted_by_what_they_spent():
    ends, values = iteration_curve(RECORD, "train/entropy", "tokens")
    assert ends.tolist() == [100, 150, 200]
    assert step_mean_up_to(ends, values, 200) == pytest.approx((1.0 * 100 + 0.5 * 50) / 150)
    assert step_mean_up_to(ends, values, 175) == pytest.approx((1.0 * 100 + 0.5 * 25) / 125)
    assert step_mean_up_to(ends, values, 80) == 1.0


def test_a_fall_from_the_best_point_by_hand():
    curve = held_out_curve(RECORD, "val/pass@1", "tokens")
    assert drop_up_to(*curve, 200) == pytest.approx(0.4)
    assert drop_up_to(*curve, 175) == pytest.approx(0.2)
    assert drop_up_to(*curve, 100) == 0.0


def test_restlessness_by_hand():
    ends, values = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1.0, 3.0, 2.0, 90.0])
    # within 30: changes 2 and 1, mean 1.5, over the mean of 1, 3 and 2
    assert restlessness_up_to(ends, values, 30) == pytest.approx(0.75)
    assert np.isnan(restlessness_up_to(ends, values, 5))


def test_what_was_not_measured_is_no_number():
    nothing = np.array([]), np.array([])
    for read in (value_at, mean_up_to, drop_up_to):
        assert np.isnan(read(*nothing, 10))
    assert np.isnan(step_mean_up_to(np.array([10.0]), np.array([np.nan]), 10))
    assert resampled([nothing], np.array([1.0])).size == 0


def test_a_run_is_short_if_one_budget_is_not_spent():
    assert not is_short(RECORD, {"tokens": 200, "calls": 60})
    assert is_short(RECORD, {"tokens": 200, "calls": 61})
    assert is_short(RECORD, {"tokens": 201, "calls": 60})
