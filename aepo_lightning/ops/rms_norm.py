"""Root-mean-square normalisation in few passes over memory, forward and backward."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "seq hidden"], weight: Float[Tensor, " hidden"], eps: float
    ) -> Float[Tensor, "seq hidden"]:
        width = hidden.shape[-1]
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        scale = length.square_().div_(width).add_(eps).rsqrt_()
        normed: Tensor = hidden * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_result: Float[Tensor, "seq hidden"]) -> tuple[Tensor, Tensor, None]:
        # With n = s h and s = 1 / rms(h): d h = s (w g - n mean(n w g)).
        normed, weight, scale = ctx.saved_tensors
        products = grad_result * normed
        mean = torch.mv(products, weight).div_(-normed.shape[-1])
        grad_hidden = torch.addcmul(grad_result * weight, normed, mean[:, None]).mul_(scale)
        return grad_hidden, products.sum(0), None


def rms_norm(
    hidden: Float[Tensor, "*batch hidden"], weight: Float[Tensor, " hidden"], eps: float
) -> Float[Tensor, "*batch hidden"]:
    """Return `hidden / sqrt(mean(hidden^2) + eps) * weight`, the mean over the last axis.

    Args:
        hidden: Inputs of any number of tokens.
        weight: One factor per component.
        eps: Added to the mean square.

    Returns:
        The outputs, in the shape of the inputs. Gradients are first-order only.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    result: Tensor = _RMSNorm.apply(rows, weight, eps)  # type: ignore[no-untyped-call]
    return result.view(hidden.shape)
