"""RMS norms as one kernel each, where transformers launches eight: a third of all launches of a decoding step.

In an update each of the eight writes all hidden states and the backward pass reads them again; the one keeps the states
that came in and a number for each of them.
"""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Of outputs and gradients around 1. Types of 16 bits are rounded once instead of twice."""
_NARROW_TOLERANCE = 2**-6


def fuse_norms(model: nn.Module) -> int:
    """Let the RMS norms of a model compute the same, and the same gradients, with torch's own kernel.

    States of another type than the weights (under autocast) go the model's own way, for which torch has no such kernel.

    Args:
        model: Its weights may be replaced in place later, sharded, or have no memory yet.

    Returns:
        How many norms were found. Whatever else a layer of that name does keeps it as it is.
    """
    verdicts: dict[tuple[type, torch.dtype], bool] = {}
    fused = 0
    for module in model.modules():
        if not _looks_like_one(module):
            continue
        kind = (type(module), module.get_parameter("weight").dtype)
        if kind not in verdicts:
            verdicts[kind] = _is_plain(module)
        if verdicts[kind]:
            module.forward = partial(_normalise, module)
            fused += 1
    return fused


def _looks_like_one(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters(recurse=False))
    named_so = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return named_so and set(parameters) == {"weight"} and parameters["weight"].ndim == 1


def _normalise(module: nn.Module, hidden: Tensor) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if hidden.dtype != weight.dtype:
        own: Tensor = type(module).forward(module, hidden)
        return own
    result: Tensor = nn.functional.rms_norm(hidden, weight.shape, weight, module.variance_epsilon)  # type: ignore[arg-type]
    return result


def _is_plain(module: nn.Module) -> bool:
    """Compare both on weights and states that tell them apart, where the module is."""
    device = module.get_parameter("weight").device
    trial = deepcopy(module).to_empty(device="cpu" if device.type == "meta" else device).requires_grad_(True)
    weight = trial.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    hidden = (4 * torch.randn(3, len(weight), generator=generator)).to(weight).requires_grad_(True)
    slopes = torch.randn(3, len(weight), generator=generator).to(weight)
    tolerance = _TOLERANCE.get(weight.dtype, _NARROW_TOLERANCE)
    with torch.enable_grad():
        found, expected = _normalise(trial, hidden), trial(hidden)
        if found.dtype != expected.dtype:
            return False
        gradients = [torch.autograd.grad(each, (hidden, weight), slopes) for each in (found, expected)]
    pairs = [(found, expected), *zip(*gradients, strict=True)]
    return all(torch.allclose(one, other, rtol=tolerance, atol=tolerance) for one, other in pairs)
