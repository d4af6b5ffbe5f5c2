"""How far two computations of the same hidden states may be from each other."""

import torch
from jaxtyping import Float
from torch import Tensor


def median_distance(found: Float[Tensor, "*batch hidden"], expected: Float[Tensor, "*batch hidden"]) -> float:
    """Return how far hidden states are from what they should be, as a share of their norm: the median over tokens.

    The median, as rounding may lead single tokens to other experts.
    """
    distances = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-6)
    return float(distances.median())


def most_rounding(states: Float[Tensor, "*batch hidden"]) -> float:
    """Return the distance that the precision of hidden states may account for."""
    device = states.device.type
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    is_narrow = states.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device)
    return 0.1 if is_narrow or backend.fp32_precision in ("tf32", "bf16") else 1e-4
