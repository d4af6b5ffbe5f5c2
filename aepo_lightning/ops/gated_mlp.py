"""A gated MLP that never holds its wide activations, only a tile of some tokens at a time.

The intermediate width is several times the hidden width, so that plain evaluation writes and keeps four tensors of it
per layer and reads them again in the backward pass. A tile stays in a processor's cache instead, and the backward pass
computes it again, which costs two products of eight more and is faster where memory is slow.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aepo_lightning.ops.logit_blocks import slices

TILE_ROWS = 256
"""Tokens of a tile: few enough for the cache, enough for fast products."""


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "seq hidden"],
        gate: Float[Tensor, "wide hidden"],
        up: Float[Tensor, "wide hidden"],
        down: Float[Tensor, "hidden wide"],
    ) -> Float[Tensor, "seq hidden"]:
        ctx.save_for_backward(hidden, gate, up, down)
        result = hidden.new_empty(len(hidden), len(down))
        buffers = _buffers(hidden, len(gate), 2)
        for rows in slices(len(hidden), TILE_ROWS):
            gated, raised = (buffer[: rows.stop - rows.start] for buffer in buffers)
            torch.mm(hidden[rows], gate.T, out=gated)
            torch.mm(hidden[rows], up.T, out=raised)
            nn.functional.silu(gated, inplace=True).mul_(raised)
            torch.mm(gated, down.T, out=result[rows])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_result: Float[Tensor, "seq hidden"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, gate, up, down = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_gate, grad_up, grad_down = (torch.zeros_like(weight) for weight in (gate, up, down))
        buffers = _buffers(hidden, len(gate), 4)
        for rows in slices(len(hidden), TILE_ROWS):
            inputs, grads, target = hidden[rows], grad_result[rows], grad_hidden[rows]
            gated, raised, active, product = (buffer[: len(inputs)] for buffer in buffers)
            torch.mm(inputs, gate.T, out=gated)
            torch.mm(inputs, up.T, out=raised)
            torch.ops.aten.silu.out(gated, out=active)
            torch.mul(active, raised, out=product)
            grad_down.addmm_(grads.T, product)
            grad_product = torch.mm(grads, down, out=product)
            grad_raised, grad_active = active.mul_(grad_product), raised.mul_(grad_product)
            grad_gated = torch.ops.aten.silu_backward.grad_input(grad_active, gated, grad_input=grad_active)
            grad_gate.addmm_(grad_gated.T, inputs)
            grad_up.addmm_(grad_raised.T, inputs)
            torch.mm(grad_gated, gate, out=target)
            target.addmm_(grad_raised, up)
        return grad_hidden, grad_gate, grad_up, grad_down


def _buffers(hidden: Float[Tensor, "seq hidden"], width: int, count: int) -> list[Float[Tensor, "tile wide"]]:
    num_rows = min(TILE_ROWS, len(hidden))
    return [hidden.new_empty(num_rows, width) for _ in range(count)]


def gated_mlp(
    hidden: Float[Tensor, "*batch hidden"],
    gate: Float[Tensor, "wide hidden"],
    up: Float[Tensor, "wide hidden"],
    down: Float[Tensor, "hidden wide"],
    is_needed: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch hidden"]:
    """Return `(silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T`, a tile of tokens at a time.

    Args:
        hidden: Inputs of any number of tokens.
        gate: Weight of the projection that silu is applied to.
        up: Weight of the projection that it multiplies.
        down: Weight of the projection back.
        is_needed: Tokens to compute; the others get zeros. None computes all.

    Returns:
        The outputs, in the shape of the inputs. Gradients are first-order only.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    if is_needed is None:
        result: Tensor = _GatedMLP.apply(rows, gate, up, down)  # type: ignore[no-untyped-call]
        return result.view(hidden.shape)
    index = is_needed.flatten().nonzero()[:, 0]
    result = _GatedMLP.apply(rows[index], gate, up, down)  # type: ignore[no-untyped-call]
    return torch.zeros_like(rows).index_put((index,), result).view(hidden.shape)
