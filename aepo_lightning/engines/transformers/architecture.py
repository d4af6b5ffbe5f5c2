"""Which models the embedded engine computes exactly. It refuses the others, whose numbers would be silently wrong."""

from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from aepo_lightning.engines.transformers.slot_cache import SlotCache
from aepo_lightning.errors import ConfigError, EngineError, boundary
from aepo_lightning.ops.logit_map import LogitMap
from aepo_lightning.policy.output_head import measure_logit_map
from aepo_lightning.policy.rounding import median_distance, most_rounding


def check_architecture(model: PreTrainedModel, max_model_len: int) -> LogitMap:
    """Check that a model is a backbone with full causal attention and a linear head.

    Returns:
        What the model does to the outputs of its head.

    Raises:
        EngineError: If it is not, within `max_model_len` tokens.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    try:
        logit_map = measure_logit_map(model)
    except ConfigError as error:
        raise EngineError(f"The engine refuses {name}. {error}") from error
    implementation = model.config._attn_implementation
    if implementation != "sdpa":
        raise EngineError(
            f"`attn_implementation` must be 'sdpa' in this engine, but got {implementation!r}. Others read its "
            "attention mask differently. Load the model with 'sdpa'."
        )
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        raise EngineError(f"`attn_logit_softcapping` must be None, but got {cap} ({name}): 'sdpa' has none. {_ADVICE}")
    window = getattr(config, "sliding_window", None)
    window = max_model_len if window is None else window
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise EngineError(f"Every layer must use full attention, but got {sorted(kinds)} ({name}). {_ADVICE}")
    if "sliding_attention" in kinds and window < max_model_len:
        raise EngineError(
            f"`max_model_len` must be at most the attention window of {window} tokens, but got {max_model_len} "
            f"({name}). Lower `max_model_len`."
        )
    return logit_map


@torch.inference_mode()
def check_cache(model: PreTrainedModel) -> None:
    """Compare last hidden states of a few tokens, fed in two parts through slots, with those of a plain forward pass.

    Layers with a state of their own, or with keys and values of other shapes, have no place in the slots.

    Args:
        model: A model that `check_architecture` has let through, on its device.

    Raises:
        EngineError: If they differ, or the model fails.
    """

    def refuse(error: Exception) -> NoReturn:
        raise EngineError(
            f"Keys and values in slots must serve the model, but {name} fails on them: {error!r}. {_ADVICE}"
        ) from error

    name = type(model).__name__
    ids = torch.arange(12, device=model.device).view(2, 6) % len(model.lm_head.weight)
    with boundary(refuse):
        found = _states_by_slots(model, ids, 4)
    expected = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, 4:]
    difference, most = median_distance(found, expected), most_rounding(expected)
    if not difference <= most:
        raise EngineError(
            f"Last hidden states by keys and values in slots must be those of a plain pass, but those of {name} differ "
            f"by {difference:.2g} of their norm, where rounding may make {most:g}. {_ADVICE}"
        )


def _states_by_slots(model: PreTrainedModel, ids: Tensor, num_first: int) -> Float[Tensor, "batch seq hidden"]:
    """Return the last hidden states of what follows the first tokens, as the engine computes them."""
    count, length = ids.shape
    cache = SlotCache(model.config.get_text_config(), count, length, ids.device, next(model.parameters()).dtype)
    states = torch.empty(0)
    for start, stop in ((0, num_first), (num_first, length)):
        positions = torch.arange(start, stop, device=ids.device).expand(count, -1)
        cache.prepare(torch.arange(count, device=ids.device), positions, stop)
        states = model.model(
            input_ids=ids[:, start:stop],
            attention_mask=(torch.arange(stop, device=ids.device) <= positions[..., None])[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    return states


_ADVICE = "Use another model, or the vLLM engine."
