"""The norm in few passes: its values and gradients are those of the formula."""

import pytest
import torch

from aepo_lightning.ops.rms_norm import rms_norm

EPS = 1e-6


def make_inputs(*shape):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.rand(shape[-1], generator=generator, dtype=torch.float64)
    return hidden.requires_grad_(), weight.requires_grad_()


def plain(hidden, weight):
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + EPS) * weight


def test_one_token_by_hand():
    # The mean square of (3, 4) is 12.5.
    found = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    assert found.tolist() == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 2, 4), (0, 4)])
def test_values_and_gradients_are_those_of_the_plain_formula(shape):
    inputs = make_inputs(*shape)
    expected, found = plain(*inputs), rms_norm(*inputs, EPS)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(shape, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad(result, inputs, cotangent) for result in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(lambda hidden, weight: rms_norm(hidden, weight, EPS), make_inputs(3, 4))


def test_zeros_stay_zeros_and_have_finite_gradients():
    hidden = torch.zeros(2, 4, requires_grad=True)
    found = rms_norm(hidden, torch.ones(4), EPS)
    found.sum().backward()
    assert not found.any()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
