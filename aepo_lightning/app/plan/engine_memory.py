"""What the engine in the trainer's process does with its share of each device."""

from dataclasses import dataclass

from aepo_lightning.app.plan.input import PlanInput
from aepo_lightning.app.plan.model_size import FP32, GIB, ModelSize

_FP64, _RESTRICTED = 8, 45


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes of one device."""

    share_bytes: int
    weight_bytes: int
    """Weights while awake."""
    asleep_bytes: int
    """What the engine holds during the update: nothing if it sleeps, weights and cache if it cannot."""
    kv_bytes_per_token: int
    kv_tokens: int
    """Tokens whose keys and values fit into one copy of the engine; 0 if the weights alone fill its share."""


def engine_memory(size: ModelSize, settings: PlanInput) -> EngineMemory:
    """Divide the engine's share of one device into weights, workspace and key-value cache."""
    share = settings.engine_share_bytes or round(settings.engine_memory_fraction * settings.gpu_memory_gib * GIB)
    workspace = round(settings.engine_workspace_gib * GIB)
    weights = -(-settings.engine_number_bytes * size.num_parameters // settings.engine_tensor_parallel)
    per_token = size.kv_bytes_per_token(settings.engine_tensor_parallel, settings.engine_number_bytes)
    return EngineMemory(
        share_bytes=share,
        weight_bytes=weights,
        asleep_bytes=0 if settings.engine_sleeps else max(share - workspace, 0),
        kv_bytes_per_token=per_token,
        kv_tokens=max(share - weights - workspace, 0) // per_token,
    )


def embedded_workspace(
    size: ModelSize, width: int, max_num_seqs: int, max_model_len: int, max_prefill_tokens: int, *, restricts: bool
) -> int:
    """Return the bytes that the embedded engine needs for a moment beside weights and cache, at most.

    With b the bytes of a number, B sequences of length S, M tokens of the largest pass over prompts, h the hidden
    size, d that of a head, q and kv the widths of queries and keys, f the MLP width and V the vocabulary, the largest:

        MLP of a prompt      bM(4h + 3f + 2d) + MS    what enters the model, the layer and its MLP (twice: normalised),
                                                      gate, up and their product, rotary angles; the mask
        attention of a step  2bBS(kv + q)             keys and values that are looked at, and for heads that share them
        sampling             BV(b + 4 + 4 + 8)        logits, log-probs, probabilities, cumulative ones in fp64; 45 more
                                                      with top-p or top-k: sorted, by rank, in fp64 and back

    Args:
        size: Of the model.
        width: b.
        max_num_seqs: B.
        max_model_len: S.
        max_prefill_tokens: M, where as many are to be read.
        restricts: Whether tokens are sampled with top-p or top-k.
    """
    query, key = size.num_attention_heads * size.head_dim, size.num_key_value_heads * size.head_dim
    prompt_tokens = max(min(max_prefill_tokens, max_num_seqs * max_model_len), max_model_len)
    saved = 4 * size.hidden_size + 3 * size.intermediate_size + 2 * size.head_dim
    mlp = prompt_tokens * (width * saved + max_model_len)
    attention = 2 * width * max_num_seqs * max_model_len * (key + query * (query > key))
    sampling = max_num_seqs * size.vocab_size * (width + 2 * FP32 + _FP64 + _RESTRICTED * restricts)
    return max(mlp, attention, sampling)
