import math

import pytest
import torch

from aepo_lightning.ops.masked import importance_ratio, masked_sum, row_means, turn_means, weighted_mean, zero_outside

MASK = torch.tensor([[True, True, False], [True, False, False]])


def make_values(outside: float) -> torch.Tensor:
    values = torch.tensor([[1.0, 2.0, 0.0], [6.0, 0.0, 0.0]], dtype=torch.float64)
    return values.masked_fill(~MASK, outside)


@pytest.mark.parametrize("outside", [5.0, math.nan, math.inf, -math.inf])
def test_the_sum_ignores_what_is_outside_the_mask(outside):
    # 1 + 2 + 6 = 9
    assert masked_sum(make_values(outside), MASK).item() == 9.0


@pytest.mark.parametrize("outside", [5.0, math.nan, math.inf, -math.inf])
def test_gradient_of_the_sum_is_one_inside_and_zero_outside(outside):
    values = make_values(outside).requires_grad_()
    masked_sum(values, MASK).backward()
    torch.testing.assert_close(values.grad, MASK.double())


def test_the_sum_of_an_empty_mask_is_zero():
    empty = torch.zeros_like(MASK)
    assert masked_sum(make_values(math.nan), empty).item() == 0.0
    assert masked_sum(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).item() == 0.0


def test_nan_inside_the_mask_is_not_hidden():
    assert masked_sum(make_values(0.0).masked_fill(MASK, math.nan), MASK).isnan()


def test_zero_outside_before_exp_keeps_the_gradient_finite():
    values = make_values(math.inf).requires_grad_()
    zero_outside(values, MASK).exp().sum().backward()
    torch.testing.assert_close(values.grad, torch.where(MASK, make_values(0.0).exp(), 0.0))


def test_weighted_mean_adds_up_over_rows():
    values = make_values(math.nan).requires_grad_()
    parts = [weighted_mean(values[row : row + 1], MASK[row : row + 1]) for row in range(2)]
    whole = parts[0] + parts[1]
    assert not whole.total.requires_grad
    assert (whole.total.item(), whole.weight.item(), whole.value()) == (9.0, 3.0, 3.0)


def test_importance_ratio_is_exp_of_the_log_ratio():
    # e^ln 2 = 2, e^0 = 1, e^-ln 4 = 0.25
    ratio = importance_ratio(torch.tensor([[math.log(2), 0.0, -math.log(4)]], dtype=torch.float64))
    torch.testing.assert_close(ratio, torch.tensor([[2.0, 1.0, 0.25]], dtype=torch.float64))


@pytest.mark.parametrize("extreme", [21.0, 1e30, math.inf])
def test_importance_ratio_is_clamped_at_log_ratio_20_without_gradient(extreme):
    log_ratio = torch.tensor([[extreme, -extreme]], dtype=torch.float64, requires_grad=True)
    ratio = importance_ratio(log_ratio)
    ratio.sum().backward()
    torch.testing.assert_close(ratio.detach(), torch.tensor([[math.exp(20), math.exp(-20)]], dtype=torch.float64))
    assert log_ratio.grad.tolist() == [[0.0, 0.0]]


def test_importance_ratio_keeps_nan():
    assert importance_ratio(torch.tensor([[math.nan]])).isnan().all()


@pytest.mark.parametrize("outside", [5.0, math.nan])
def test_means_of_rows_and_of_turns(outside):
    mask = torch.tensor([[True, True, False, False, True], [False, True, True, True, False], [False] * 5])
    values = torch.tensor([[1.0, 2.0, 0.0, 0.0, 6.0], [0.0, 1.0, 2.0, 6.0, 0.0], [0.0] * 5]).masked_fill(~mask, outside)
    assert row_means(values, mask).tolist() == [[3.0] * 5, [3.0] * 5, [0.0] * 5]
    assert turn_means(values, mask).tolist() == [[1.5, 1.5, 0.0, 0.0, 6.0], [0.0, 3.0, 3.0, 3.0, 0.0], [0.0] * 5]
