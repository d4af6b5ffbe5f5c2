"""Runs a Hugging Face backbone over packed trajectories.

The backbone computes everything but attention token by token, so packing changes two things only: the position of a
token is its depth, and queries, keys and values go to our attention, which arrives as an argument of the model.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from aepo_lightning.contracts.batch import PackedTokens
from aepo_lightning.errors import TrainingError, boundary
from aepo_lightning.ops.tree_attention import (
    BackEnd,
    PackedAttention,
    QueryKind,
    build_attention,
    is_flat,
    pick_back_end,
    why_not_varlen,
)
from aepo_lightning.ops.tree_packing import pack_rows
from aepo_lightning.policy.rounding import median_distance, most_rounding

logger = logging.getLogger(__name__)

IMPLEMENTATION = "aepo_packed"
"""Under this name transformers finds our attention. It builds no mask for names that it does not know."""
WHOLE_ROWS = "aepo_whole_rows"
"""Under this name it finds attention over rows that are not packed, with the masks of its own `sdpa`."""
_ADVICE = "Use `experience.packing=padded`."


class BackEndChoice:
    """Which back end runs which packed rows, named in the log when it is first used."""

    def __init__(self, fixed: BackEnd | None = None) -> None:
        """Take the back end of all rows, or None to pick the fastest for each."""
        self._fixed: BackEnd | None = fixed
        self._announced: set[tuple[str, str]] = set()

    def __call__(self, packed: PackedTokens, query: Float[Tensor, "batch heads seq dim"]) -> BackEnd:
        """Return the back end for a row and the queries of its first layer."""
        kind = QueryKind.of(query)
        back_end = self._fixed or pick_back_end(packed, kind)
        shape = "flat" if is_flat(packed) else "tree"
        if (shape, back_end) not in self._announced:
            self._announced.add((shape, back_end))
            obstacle = why_not_varlen(kind) if (shape, back_end) == ("flat", "flex") else None
            reason = f" (not 'varlen': {obstacle})" if obstacle else ""
            logger.info("Packed batches (%s) run on the %r attention back end%s.", shape, back_end, reason)
        return back_end


def packed_states(
    model: PreTrainedModel, packed: PackedTokens, choose: Callable[[PackedTokens, Tensor], BackEnd]
) -> Float[Tensor, "seq hidden"]:
    """Return the last hidden state of every packed token.

    Args:
        model: A causal language model with a `model` backbone. It then attends through our implementation, which
            builds no mask for what is not packed: see `attend_with`.
        packed: What to run.
        choose: Says how attention is computed, once the queries of the first layer are there.

    Raises:
        TrainingError: If the model cannot run packed tokens: its attention has a window, soft caps, sinks or dropout,
            its rotary embeddings depend on the longest row, or a layer does not attend through transformers' attention
            interface.
    """
    attend_with(model, IMPLEMENTATION)
    _refuse_moving_rope(model, packed)
    attention = _LayerAttention(packed, choose)
    states: Tensor = model.model(
        input_ids=packed.input_ids[None],
        position_ids=packed.position_ids[None],
        use_cache=False,
        packed_attention=attention,
    ).last_hidden_state
    num_layers = model.config.get_text_config().num_hidden_layers
    if attention.num_calls != num_layers:
        # Whatever mixed tokens in the other layers knew nothing of the paths.
        raise TrainingError(
            f"Each of {num_layers} layers must attend through transformers' attention interface, "
            f"but {attention.num_calls} of {type(model).__name__} did. {_ADVICE}"
        )
    return states[0]


def attend_with(model: PreTrainedModel, implementation: str) -> None:
    """Have a model attend through an implementation, with the masks that transformers builds for it.

    Args:
        model: The model.
        implementation: A name of transformers, or ours.
    """
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)


def exact_attention(model: PreTrainedModel) -> str:
    """Return the implementation that computes a model's attention: its own, or `eager` where that drops a cap.

    transformers' `sdpa` takes a cap of attention scores, as Gemma 2 has one, and ignores it.
    """
    own: str = model.config._attn_implementation
    if own == "sdpa" and getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        logger.info("%s caps its attention scores and attends through 'eager'.", type(model).__name__)
        return "eager"
    return own


def padded_attention(implementation: str, device: torch.device) -> str:
    """Return the implementation that attends over padded rows on a device.

    On CUDA, only FlashAttention lets query heads share keys: for what it cannot run, such as float32, `sdpa` keeps a
    matrix of all pairs. Ours gives every query head keys of its own there, which other fused kernels can run.
    """
    return WHOLE_ROWS if implementation == "sdpa" and device.type == "cuda" else implementation


@torch.no_grad()
def check_packing(model: PreTrainedModel, implementation: str, device: torch.device) -> None:
    """Compare last hidden states of a small tree with those of its rows, padded. Collective where it is sharded.

    A layer may mix tokens beside its attention, as state spaces and convolutions do, or take positions from somewhere
    else. The numbers then belong to no trajectory.

    Args:
        model: A causal language model with a `model` backbone.
        implementation: How it attends where nothing is packed.
        device: Where it computes.

    Raises:
        TrainingError: If they differ, or the model cannot run packed tokens.
    """
    count, length = 6, 4
    ids = torch.arange(1, count * length + 1).view(count, length) % len(model.lm_head.weight)
    ids[:, 0] = 0  # what they share
    mask = torch.ones(count, length - 1, dtype=torch.bool)
    packed = pack_rows(ids, torch.full((count,), length), mask).to(device)
    attend_with(model, implementation)
    expected = model.model(input_ids=ids.to(device), use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    with boundary(_explain):
        found = packed_states(model, packed, lambda *_: "dense")[packed.sources][packed.scored_index]
    difference, most = median_distance(found, expected), most_rounding(expected)
    if not difference <= most:
        raise TrainingError(
            f"Last hidden states of packed tokens must be those of padded rows, but those of {type(model).__name__} "
            f"differ by {difference:.2g} of their norm, where rounding may make {most:g}: something beside its "
            f"attention mixes tokens or places them. {_ADVICE}"
        )


def _explain(error: Exception) -> NoReturn:
    """Say that a model's own code cannot run packed tokens."""
    if isinstance(error, TrainingError):
        raise error
    raise TrainingError(f"The model must run packed tokens, but fails on them: {error!r}. {_ADVICE}") from error


def _longest_path(packed: PackedTokens) -> int:
    """Return the tokens of the longest trajectory. The host waits for the device here."""
    return int(packed.position_ids.max()) + 1


def _refuse_moving_rope(model: PreTrainedModel, packed: PackedTokens) -> None:
    """Refuse rotary embeddings whose frequencies follow the longest row of a batch, where they begin to."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return
    limit = rope.get("original_max_position_embeddings") or model.config.max_position_embeddings
    if (longest := _longest_path(packed)) > limit:
        raise TrainingError(
            f"A trajectory must have at most {limit} tokens where `rope_type` is {rope['rope_type']!r}, but one has "
            f"{longest}. Beyond them log-probs depend on the other rows of a batch. Shorten it, or use yarn. {_ADVICE}"
        )


class _LayerAttention:
    """What every layer calls during one forward pass."""

    def __init__(self, packed: PackedTokens, choose: Callable[[PackedTokens, Tensor], BackEnd]) -> None:
        self._packed = packed
        self._choose = choose
        # Built at the first call: the precision of the layers is known only there, whoever casts.
        self._attention: PackedAttention | None = None
        self.num_calls = 0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, options: Mapping[str, Any]
    ) -> Float[Tensor, "batch heads seq dim"]:
        self._refuse(options)
        if query.shape[-1] != value.shape[-1]:
            raise TrainingError(
                f"Queries and values over packed tokens must have one size, but got {query.shape[-1]} and "
                f"{value.shape[-1]} per head, as in latent attention. {_ADVICE}"
            )
        self.num_calls += 1
        device = query.device.type
        if torch.is_autocast_enabled(device):
            # As autocast does before scaled-dot-product attention: norms have widened queries and keys, not values.
            dtype = torch.get_autocast_dtype(device)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if self._attention is None:
            self._attention = build_attention(self._packed, self._choose(self._packed, query))
        return self._attention(query, key, value, scale)

    @cached_property
    def _longest(self) -> int:
        return _longest_path(self._packed)

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
        return _attend_over_rows(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, key, value, scale, {"dropout": 0.0} | options).transpose(1, 2), None


def _attend_over_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend over rows that are not packed, never with a matrix of all pairs where a fused kernel can be had."""
    groups = query.shape[1] // key.shape[1]
    layer: Any = module
    if query.device.type == "cuda" and groups > 1 and why_not_varlen(_kind_in_products(query)) is not None:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        layer = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # a layer that shares no keys
    attended: tuple[Tensor, None] = sdpa_attention_forward(layer, query, key, value, attention_mask, **options)
    return attended


def _kind_in_products(query: Float[Tensor, "batch heads seq dim"]) -> QueryKind:
    """Return the kind of queries as they are multiplied."""
    device = query.device.type
    kind = QueryKind.of(query)
    return kind._replace(dtype=torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else kind


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionInterface.register(WHOLE_ROWS, _attend_over_rows)
AttentionMaskInterface.register(WHOLE_ROWS, sdpa_mask)
