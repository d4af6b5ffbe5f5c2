"""Which models the embedded engine computes exactly. It refuses the others, whose numbers would be silently wrong."""

from transformers import PreTrainedModel

from aepo_lightning.errors import EngineError

_LOGIT_SCALES = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}
"""Settings that change logits after the output embedding (Gemma, Granite, Cohere), and their neutral values."""


def check_architecture(model: PreTrainedModel, max_model_len: int) -> None:
    """Check that a model is a backbone with full causal attention and a plain output embedding.

    Raises:
        EngineError: If it is not, within `max_model_len` tokens.
    """
    config, name = model.config, type(model).__name__
    if not (hasattr(model, "model") and hasattr(model, "lm_head")):
        raise EngineError(f"The model must have a `model` backbone and an `lm_head`, but got {name}. {_ADVICE}")
    implementation = config._attn_implementation
    if implementation != "sdpa":
        raise EngineError(
            f"`attn_implementation` must be 'sdpa' in this engine, but got {implementation!r}. Others read its "
            "attention mask differently. Load the model with 'sdpa'."
        )
    for field, neutral in _LOGIT_SCALES.items():
        if getattr(config, field, neutral) != neutral:
            raise EngineError(f"`{field}` must be {neutral}, but got {getattr(config, field)} ({name}). {_ADVICE}")
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


_ADVICE = "Use another model, or the vLLM engine."
