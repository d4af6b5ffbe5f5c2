"""Runs a Hugging Face backbone over packed trajectories.

The backbone computes everything but attention token by token, so packing changes two things only: the position of a
token is its depth, and queries, keys and values go to our attention, which arrives as an argument of the model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from aepo_lightning.errors import TrainingError
from aepo_lightning.ops.tree_attention import BackEnd, build_attention
from aepo_lightning.types import PackedTokens

IMPLEMENTATION = "aepo_packed"
"""Under this name transformers finds our attention. It builds no mask for names that it does not know."""
_ADVICE = "Use `experience.packing=padded`."


def packed_states(model: PreTrainedModel, packed: PackedTokens, back_end: BackEnd) -> Float[Tensor, "seq hidden"]:
    """Return the last hidden state of every packed token.

    Args:
        model: A causal language model with a `model` backbone. From the first call on it attends through our
            implementation, which is transformers' `sdpa` for whatever is not packed.
        packed: What to run.
        back_end: How attention is computed.

    Raises:
        TrainingError: If the model cannot run packed tokens: its attention has a window, soft caps, sinks or dropout,
            or a layer does not attend through transformers' attention interface.
    """
    if model.config._attn_implementation != IMPLEMENTATION:
        model.set_attn_implementation(IMPLEMENTATION)
    attention = _LayerAttention(packed, back_end)
    states: Tensor = model.model(
        input_ids=packed.input_ids[None],
        position_ids=packed.position_ids[None],
        use_cache=False,
        packed_attention=attention,
    ).last_hidden_state
    if attention.num_calls != model.config.num_hidden_layers:
        # Whatever mixed tokens in the other layers knew nothing of the paths.
        raise TrainingError(
            f"Each of {model.config.num_hidden_layers} layers must attend through transformers' attention interface, "
            f"but {attention.num_calls} of {type(model).__name__} did. {_ADVICE}"
        )
    return states[0]


class _LayerAttention:
    """What every layer calls during one forward pass."""

    def __init__(self, packed: PackedTokens, back_end: BackEnd) -> None:
        self._attention = build_attention(packed, back_end)
        self._longest = int(packed.position_ids.max()) + 1
        self.num_calls = 0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, options: Mapping[str, Any]
    ) -> Float[Tensor, "batch heads seq dim"]:
        self._refuse(options)
        self.num_calls += 1
        device = query.device.type
        if torch.is_autocast_enabled(device):
            # As autocast does before scaled-dot-product attention: norms have widened queries and keys, not values.
            dtype = torch.get_autocast_dtype(device)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return self._attention(query, key, value, scale)

    def _refuse(self, options: Mapping[str, Any]) -> None:
        """Refuse what a layer asks for beyond full causal attention. Windows that hold every path change nothing."""
        window = options.get("sliding_window")
        if window is not None and window < self._longest:
            raise TrainingError(
                f"A packed trajectory must fit the model's attention window of {window} tokens, but one has "
                f"{self._longest}. {_ADVICE}"
            )
        for name in ("softcap", "s_aux", "position_bias"):
            if options.get(name) is not None:
                raise TrainingError(f"Attention over packed tokens must not need `{name}`. {_ADVICE}")
        if options["dropout"]:
            raise TrainingError(f"`attention_dropout` must be 0 for packed tokens, but got {options['dropout']}.")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed_attention: _LayerAttention | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it, over packed tokens where there are any."""
    if packed_attention is None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, key, value, scale, {"dropout": 0.0} | options).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, _attend)
