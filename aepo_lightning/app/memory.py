"""How much memory a model needs on each GPU while it is updated and while it generates.

The formulas are for FSDP2 with fp32 master weights, bf16 computation and fp32 gradient reduction, an attention kernel
that never stores the attention matrix, and a log-prob head that computes logits in chunks. They count what is large
and round up: a plan that fits leaves the allocator some room, one that does not fit will not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from aepo_lightning.app.plan_input import PlanInput
from aepo_lightning.errors import ConfigError

GIB = 2**30
BF16 = 2
"""Bytes of a bf16 number."""
FP32 = 4
"""Bytes of an fp32 number."""
LOGIT_BUFFERS = 3
"""Chunk-by-vocabulary buffers that exist at once in the backward pass: logits, probabilities, gradient."""
GATHERED_LAYERS = 2
"""FSDP2 gathers the next layer while the current one computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameter counts and shapes of a decoder-only model with gated MLPs and grouped-query attention."""

    num_parameters: int
    """All parameters; tied weights count once."""
    num_embedding_parameters: int
    """Input embedding and output head; one matrix if they are tied."""
    num_layer_parameters: int
    """Parameters of one layer."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    has_qk_norm: bool
    """Whether queries and keys are normalised, as in Qwen3."""

    @property
    def num_root_parameters(self) -> int:
        """Parameters outside the layers, which FSDP2 gathers as one unit: embedding, head, final norm."""
        return self.num_parameters - self.num_layers * self.num_layer_parameters

    @property
    def saved_bytes_per_token(self) -> int:
        """Bytes that one layer saves per token for its backward pass, in bf16 with fp32 norms.

        With h the hidden size, q and kv the widths of queries and keys (heads times head size), n and n_kv the
        numbers of heads and f the MLP width:

            two norms      2 * (4h + 4 + 2h + 2h)   fp32 input, its scale, normalised and weighted outputs
            attention      4q + 4kv + 4n            queries, keys, values, output; fp32 log-sum-exp
            q and k norms  6(q + kv) + 4(n + n_kv)  fp32 input, normalised output, scales; only with `has_qk_norm`
            MLP            8f                       gate, up, activation, product
        """
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        norms = 2 * (8 * self.hidden_size + 4)
        attention = 4 * query + 4 * key + 4 * self.num_attention_heads
        qk_norms = 6 * (query + key) + 4 * (self.num_attention_heads + self.num_key_value_heads)
        return norms + attention + qk_norms * self.has_qk_norm + 8 * self.intermediate_size

    def kv_bytes_per_token(self, tensor_parallel: int) -> int:
        """Bytes of keys and values in bf16 per token on each GPU. Heads are split, and copied once none is left."""
        heads = max(self.num_key_value_heads // tensor_parallel, 1)
        return 2 * BF16 * self.num_layers * heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLine:
    """One consumer of memory on one GPU, in each phase of an iteration."""

    name: str
    update_bytes: int
    rollout_bytes: int
    formula: str
    """How the bytes come about: P parameters, R of them outside the layers, L in one layer, N GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """What the engine in the same process does with its share of each GPU."""

    share_bytes: int
    weight_bytes: int
    """bf16 weights while awake."""
    asleep_bytes: int
    """What the engine holds during the update."""
    kv_bytes_per_token: int
    kv_tokens: int
    """Tokens whose keys and values fit into one copy of the engine; 0 if the weights alone fill its share."""


def model_size(architecture: Mapping[str, Any]) -> ModelSize:
    """Build the model on the meta device (no memory, no download) and measure it.

    Args:
        architecture: Fields of the Hugging Face configuration, `model_type` among them.

    Raises:
        ConfigError: If `model_type` is missing or unknown.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"`architecture.model_type` must name a Hugging Face architecture, but got {model_type!r}. "
            "Write for example qwen3, qwen2 or llama."
        )
    config = AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    layers = model.get_decoder().layers
    ends = {id(end.weight): end.weight.numel() for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    return ModelSize(
        num_parameters=_count(model),
        num_embedding_parameters=sum(ends.values()),
        num_layer_parameters=_count(layers[0]),
        num_layers=len(layers),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=layers[0].self_attn.head_dim,
        vocab_size=config.vocab_size,
        has_qk_norm=hasattr(layers[0].self_attn, "q_norm"),
    )


def memory_lines(size: ModelSize, settings: PlanInput) -> tuple[MemoryLine, ...]:
    """Return what fills one GPU during the update and during the rollout.

    P, R and L are the parameters of the model, of its root unit and of one layer; N is `num_gpus`, T the tokens of
    the largest pass, h the hidden size, V the vocabulary, A the saved bytes of one layer per token
    (`ModelSize.saved_bytes_per_token`) and n the number of layers. All figures are bytes per GPU.

        weights              4P/N                           fp32 master weights
        optimiser            8P/N                           two AdamW moments in fp32
        gradients            4P/N, deferred sync 4P         fp32; gone during the rollout
        gathered weights     2(R + 2L)                      bf16: root unit, current and prefetched layer
        gradient buffers     max(2R + 6L, 6R)               bf16 gradients and the fp32 buffer that reduces them
        activations          T(2hn + 2A), whole T(n + 1)A   layer inputs, then one layer with its gradients
        log-prob head        12 * chunk * V + 4hV           three fp32 chunk buffers, fp32 gradient of the head
        reference model      2P/N                           frozen bf16 shards
        engine               its share, or 0 asleep

    The gradient buffer of the root unit and the activations are counted together although they do not quite meet.
    """
    phases = _state_lines(size, settings) + _pass_lines(size, settings)
    return tuple(
        MemoryLine(name=name, update_bytes=update, rollout_bytes=rollout, formula=formula)
        for name, update, rollout, formula in phases
        if update or rollout
    )


def engine_memory(size: ModelSize, settings: PlanInput) -> EngineMemory:
    """Divide the engine's share of one GPU into weights, workspace and key-value cache."""
    share = round(settings.engine_memory_fraction * settings.gpu_memory_gib * GIB)
    weights = _shard(BF16 * size.num_parameters, settings.engine_tensor_parallel)
    per_token = size.kv_bytes_per_token(settings.engine_tensor_parallel)
    free = share - weights - round(settings.engine_workspace_gib * GIB)
    return EngineMemory(
        share_bytes=share,
        weight_bytes=weights,
        asleep_bytes=0 if settings.engine_sleeps else share,
        kv_bytes_per_token=per_token,
        kv_tokens=max(free, 0) // per_token,
    )


_Phases = tuple[str, int, int, str]


def _state_lines(size: ModelSize, settings: PlanInput) -> list[_Phases]:
    """Return what stays from iteration to iteration: name, bytes in the update, bytes in the rollout, formula."""
    master = _shard(FP32 * size.num_parameters, settings.num_gpus)
    reference = _shard(BF16 * size.num_parameters, settings.num_gpus) if settings.has_reference else 0
    engine = engine_memory(size, settings)
    overhead = round(settings.overhead_gib * GIB)
    return [
        ("master weights", master, master, "4P/N"),
        ("AdamW states", 2 * master, 2 * master, "8P/N"),
        ("reference model", reference, reference, "2P/N"),
        ("engine", engine.asleep_bytes, engine.share_bytes, "fraction of the GPU while awake"),
        ("overhead", overhead, overhead, "CUDA context, buffers"),
    ]


def _pass_lines(size: ModelSize, settings: PlanInput) -> list[_Phases]:
    """Return what exists during a forward and backward pass only, in the form of `_state_lines`."""
    deferred = settings.is_gradient_sync_deferred
    root, layer, tokens = size.num_root_parameters, size.num_layer_parameters, settings.pass_tokens
    gradients = _shard(FP32 * size.num_parameters, 1 if deferred else settings.num_gpus)
    gathered = BF16 * (root + GATHERED_LAYERS * layer)
    buffers = max(BF16 * root + (BF16 + FP32) * layer, (BF16 + FP32) * root)
    inputs = BF16 * size.hidden_size * size.num_layers
    saved = size.saved_bytes_per_token
    activations = tokens * (inputs + 2 * saved if settings.is_checkpointed else (size.num_layers + 1) * saved)
    logits = LOGIT_BUFFERS * FP32 * settings.logprob_chunk_tokens * size.vocab_size
    head = logits + FP32 * size.hidden_size * size.vocab_size
    return [
        ("gradients", gradients, 0, "4P, whole" if deferred else "4P/N"),
        ("gathered weights", gathered, 0, "2(R + 2L)"),
        ("gradient buffers", buffers, 0, "max(2R + 6L, 6R)"),
        ("activations", activations, 0, "T(2hn + 2A)" if settings.is_checkpointed else "T(n + 1)A"),
        ("log-prob head", head, 0, "12 * chunk * V + 4hV"),
    ]


def _shard(num_bytes: int, num_gpus: int) -> int:
    """Return the bytes that one of `num_gpus` holds, rounded up."""
    return -(-num_bytes // num_gpus)


def _count(module: torch.nn.Module) -> int:
    """Return the number of parameters of a module; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())
