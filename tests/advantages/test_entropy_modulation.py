"""EMPG: certain turns count more, and lead to a bonus for the turn before them."""

import math

import pytest
import torch

from aepo_lightning.advantages import EntropyModulation
from aepo_lightning.contracts.shaping import AdvantageShaping
from tests.support.step_batches import PARTS, WHOLE, as_batch, by_row, make_rows, split


def turns_of(mask):
    """The runs of True, as lists of columns."""
    turns = []
    for column, is_response in enumerate(mask):
        if is_response and (column == 0 or not mask[column - 1]):
            turns.append([])
        if is_response:
            turns[-1].append(column)
    return turns


def slow_reference(rows, scale_sharpness, bonus_sharpness, bonus_weight):
    """The formulas of the paper, turn by turn. Advantages are those of whole trajectories or differ by token."""
    turns = [(row, columns) for row, mask in enumerate(rows["response_mask"].tolist()) for columns in turns_of(mask)]
    entropies = [sum(float(rows["old_entropies"][row, t]) for t in columns) / len(columns) for row, columns in turns]
    low, high = min(entropies), max(entropies)
    normalised = [(h - low) / (high - low + 1e-8) for h in entropies]
    scales = [math.exp(-scale_sharpness * h) for h in normalised]
    mean_scale = sum(scales) / len(scales)
    found, means = {}, []
    for number, (row, columns) in enumerate(turns):
        has_next = number + 1 < len(turns) and turns[number + 1][0] == row
        bonus = bonus_weight * math.exp(-bonus_sharpness * normalised[number + 1]) if has_next else 0.0
        for t in columns:
            found[row, t] = float(rows["advantages"][row, t]) * scales[number] / mean_scale + bonus
        means.append(sum(found[row, t] for t in columns) / len(columns))
    mean = sum(means) / len(means)
    return {place: value - mean for place, value in found.items()}


@pytest.mark.parametrize("settings", [(1.0, 1.0, 0.05), (2.0, 0.5, 0.3), (0.0, 1.0, 0.0)])
def test_equals_a_loop_over_turns(settings):
    rows = make_rows()
    modulation = EntropyModulation(scale_sharpness=settings[0], bonus_sharpness=settings[1], bonus_weight=settings[2])
    (found,) = modulation(split(rows, *WHOLE))
    expected = slow_reference(rows, *settings)
    for place in rows["response_mask"].nonzero().tolist():
        assert float(found[tuple(place)]) == pytest.approx(expected[tuple(place)], rel=1e-5, abs=1e-6)
    assert not found[~rows["response_mask"]].any()


def two_trajectories():
    """Advantages 1 and -1; turns of entropy 0 and 1, and of entropy 1."""
    return {
        "input_ids": torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0]]),
        "lengths": torch.tensor([5, 3]),
        "response_mask": torch.tensor([[True, False, True, True], [False, True, False, False]]),
        "old_logprobs": torch.zeros(2, 4),
        "old_entropies": torch.tensor([[0.0, 9.0, 0.5, 1.5], [9.0, 1.0, 0.0, 0.0]]),
        "advantages": torch.tensor([[1.0] * 4, [-1.0] * 4]),
        "group_index": torch.tensor([0, 0]),
    }


def test_by_hand():
    rows = two_trajectories()
    (found,) = EntropyModulation(bonus_weight=0.1)([as_batch(rows, torch.arange(2))])
    # Scales 1, 1/e, 1/e with mean (1 + 2/e) / 3 = 0.578586: g = 1.728351, 0.635825, 0.635825. The bonus of the first
    # turn is 0.1/e = 0.036788. Modulated 1.765139, 0.635825, -0.635825, with mean 0.588380.
    expected = [[1.176759, 0, 0.047445, 0.047445], [0, -1.224205, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=0)


def test_the_mean_over_turns_is_zero_and_the_mean_scale_one():
    rows = make_rows()
    rows["advantages"] = torch.ones(8, 12)
    turns = [(i, columns[0]) for i, mask in enumerate(rows["response_mask"].tolist()) for columns in turns_of(mask)]
    (found,) = EntropyModulation(bonus_weight=0.0)(split(rows, *WHOLE))
    assert sum(float(found[place]) for place in turns) / len(turns) == pytest.approx(0.0, abs=1e-6)


def test_certain_turns_count_more_for_both_signs_of_the_advantage():
    rows = two_trajectories()
    rows["old_entropies"][1, 1] = 0.0
    (found,) = EntropyModulation(bonus_weight=0.0)([as_batch(rows, torch.arange(2))])
    assert found[0, 0] > found[0, 2] > 0
    assert -found[1, 1] > found[0, 2]


def test_does_not_depend_on_the_split():
    rows = make_rows()
    whole, parts = (by_row(EntropyModulation()(split(rows, *each)), *each) for each in (WHOLE, PARTS))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)


def test_a_step_of_equal_entropies_only_adds_the_bonus():
    rows = two_trajectories()
    rows["old_entropies"].fill_(0.7)
    (found,) = EntropyModulation(bonus_weight=0.3)([as_batch(rows, torch.arange(2))])
    # 1 + 0.3, 1 and -1 minus their mean 1.3 / 3.
    mean = 1.3 / 3
    torch.testing.assert_close(found[0], torch.tensor([1.3 - mean, 0.0, 1 - mean, 1 - mean]))


def test_rows_and_steps_without_a_response_stay_zero():
    rows = two_trajectories()
    rows["response_mask"][:] = False
    assert not EntropyModulation()([as_batch(rows, torch.arange(2))])[0].any()


def test_satisfies_the_protocol():
    assert isinstance(EntropyModulation(), AdvantageShaping)


@pytest.mark.parametrize("name", ["scale_sharpness", "bonus_sharpness", "bonus_weight"])
def test_refuses_negative_numbers(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be negative, but got -1.0"):
        EntropyModulation(**{name: -1.0})
