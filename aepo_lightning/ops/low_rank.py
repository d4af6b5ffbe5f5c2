"""The arithmetic of low-rank adapters: what a weight is with its adapter merged into it."""

import torch
from jaxtyping import Float
from torch import Tensor


def merge_low_rank(
    base: Float[Tensor, "hidden inner"],
    down: Float[Tensor, "rank inner"],
    up: Float[Tensor, "hidden rank"],
    scale: float,
) -> Float[Tensor, "hidden inner"]:
    """Return `base + scale * up @ down`, summed in float32 (float64 if an argument is) and rounded once.

    Trainer and engines all merge with this function, so that they hold the same bits.

    Args:
        base: The weight without adapter; gives the precision of the result.
        down: What the adapter multiplies inputs with first (LoRA's A).
        up: What it multiplies that with (LoRA's B).
        scale: Factor of the product; alpha over rank in LoRA.
    """
    wide = torch.float64 if torch.float64 in (base.dtype, down.dtype, up.dtype) else torch.float32
    merged: Tensor = base.to(wide) + scale * (up.to(wide) @ down.to(wide))
    return merged.to(base.dtype)
