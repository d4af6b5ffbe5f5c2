import pytest
import torch
from torch.nn.functional import silu

from aepo_lightning.ops.gated_mlp import TILE_ROWS, gated_mlp


def make_inputs(num_tokens, hidden=4, wide=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_tokens, hidden), (wide, hidden), (wide, hidden), (hidden, wide)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


def plain(hidden, gate, up, down):
    return (silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T


def test_one_token_by_hand():
    one = torch.ones(1, 1)
    # silu(2) * 3 * 0.5 with silu(2) = 2 / (1 + exp(-2)) = 1.761594
    found = gated_mlp(one, 2 * one, 3 * one, 0.5 * one)
    assert found.item() == pytest.approx(1.761594 * 3 * 0.5, rel=1e-6)


@pytest.mark.parametrize("num_tokens", [0, 1, TILE_ROWS, 2 * TILE_ROWS + 3], ids=["none", "one", "a-tile", "a-rest"])
def test_values_and_gradients_are_those_of_the_plain_formula(num_tokens):
    inputs = make_inputs(num_tokens)
    expected, found = plain(*inputs), gated_mlp(*inputs)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(expected.shape, dtype=expected.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(gated_mlp, make_inputs(5))


def test_batches_keep_their_shape():
    hidden, *weights = make_inputs(6)
    batch = hidden.view(2, 3, 4)
    assert torch.equal(gated_mlp(batch, *weights), gated_mlp(hidden, *weights).view(2, 3, 4))


def test_a_cotangent_of_any_strides_is_taken():
    inputs = make_inputs(6)
    cotangent = torch.randn(4, 6, dtype=torch.float64).T
    found = torch.autograd.grad(gated_mlp(*inputs), inputs, cotangent)
    expected = torch.autograd.grad(plain(*inputs), inputs, cotangent.contiguous())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_tokens_that_nobody_needs_get_zeros_and_give_no_gradient():
    inputs = make_inputs(6)
    is_needed = torch.tensor([True, False, False, True, True, False])
    expected, found = plain(*inputs) * is_needed[:, None], gated_mlp(*inputs, is_needed)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(expected.shape, dtype=expected.dtype)
    mine, theirs = (torch.autograd.grad(result, inputs, cotangent) for result in (found, expected))
    torch.testing.assert_close(mine, theirs)
