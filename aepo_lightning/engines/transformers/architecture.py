"""Which models the embedded engine computes exactly. It refuses the others, whose numbers would be silently wrong."""

from transformers import PreTrainedModel

from aepo_lightning.errors import ConfigError, EngineError
from aepo_lightning.ops.logit_map import LogitMap
from aepo_lightning.policy.output_head import measure_logit_map


def check_architecture(model: PreTrainedModel, max_model_len: int) -> LogitMap:
    """Check that a model is a backbone with full causal attention and a linear head.

    Returns:
        What the model does to the outputs of its head.

    Raises:
        EngineError: If it is not, within `max_model_len` tokens.
    """
    config, name = model.config, type(model).__name__
    try:
        logit_map = measure_logit_map(model)
    except ConfigError as error:
        raise EngineError(f"The engine refuses {name}. {error}") from error
    implementation = config._attn_implementation
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


_ADVICE = "Use another model, or the vLLM engine."
