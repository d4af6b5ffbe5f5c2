"""Attention of one new token per sequence, without repeating keys and values for the query heads that share them.

The query heads of a group are laid out as if they were successive queries of one head. Under a mask, transformers'
`sdpa` copies keys and values once for every query head instead, several times what a decoding step reads.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

IMPLEMENTATION = "aepo_grouped"
"""Under this name transformers finds our attention. It builds no mask for names that it does not know."""
_MORE = ("softcap", "s_aux", "position_bias")
"""What a layer may ask for beyond plain attention."""


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it; anything but one token per sequence goes to its own `sdpa`."""
    batch, heads, length, dim = query.shape
    asks_more = any(options.get(name) is not None for name in _MORE) or options.get("dropout")
    if length > 1 or attention_mask is None or asks_more:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    groups = query.reshape(batch, key.shape[1], -1, dim)
    with _kernel(query.device):
        read = scaled_dot_product_attention(groups, key, value, attn_mask=attention_mask, scale=scaling)
    return read.reshape(batch, 1, heads, value.shape[-1]), None


def _kernel(device: torch.device) -> AbstractContextManager[None]:
    """Keep CUDA to kernels that read a mask and strided keys, and that a graph can hold."""
    if device.type != "cuda":
        return nullcontext()
    kernels: AbstractContextManager[None] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return kernels


AttentionInterface.register(IMPLEMENTATION, _attend)
