"""Sizes of a decoder-only model, from its architecture alone."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig

from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.skeleton import meta_model

BF16 = 2
"""Bytes of a bf16 number."""
FP32 = 4
"""Bytes of an fp32 number."""
GIB = 2**30

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters and widths of a decoder-only model with gated MLPs and grouped-query attention."""

    layer_shapes: Shapes
    """Of the parameters of one layer."""
    root_shapes: Shapes
    """Of the parameters outside the layers, which FSDP gathers as one unit: embedding, head, final norm."""
    linear_shapes: Mapping[str, tuple[int, int]]
    """Outputs and inputs of each linear map of one layer, by the last part of its name."""
    num_embedding_parameters: int
    """Input embedding and output head; one matrix if they are tied."""
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
    def num_layer_parameters(self) -> int:
        """Parameters of one layer."""
        return sum(map(math.prod, self.layer_shapes))

    @property
    def num_root_parameters(self) -> int:
        """Parameters outside the layers."""
        return sum(map(math.prod, self.root_shapes))

    @property
    def num_parameters(self) -> int:
        """All parameters; tied weights count once."""
        return self.num_layers * self.num_layer_parameters + self.num_root_parameters

    @property
    def is_tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.num_embedding_parameters == self.vocab_size * self.hidden_size

    def saved_bytes_per_token(self, width: int = BF16) -> int:
        """Bytes that one layer saves per token for its backward pass, with fp32 norms.

        With b the bytes of a number that is computed with, h the hidden size, q and kv the widths of queries and keys
        (heads times head size), n and n_kv the numbers of heads and f the MLP width:

            two norms      2 * (4h + 4 + 2bh)              fp32 input, its scale, normalised and weighted outputs
            attention      2bq + 2b kv + 4n                queries, keys, values, output; fp32 log-sum-exp
            q and k norms  (4 + b)(q + kv) + 4(n + n_kv)   fp32 input, normalised output, scales; with `has_qk_norm`
            MLP            4bf                             gate, up, activation, product

        Args:
            width: b, 2 for bf16 and 4 for fp32.
        """
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        norms = 2 * ((FP32 + 2 * width) * self.hidden_size + 4)
        attention = 2 * width * (query + key) + 4 * self.num_attention_heads
        qk_norms = (FP32 + width) * (query + key) + 4 * (self.num_attention_heads + self.num_key_value_heads)
        return norms + attention + qk_norms * self.has_qk_norm + 4 * width * self.intermediate_size

    def kv_bytes_per_token(self, tensor_parallel: int, width: int = BF16) -> int:
        """Bytes of keys and values per token on each GPU. Heads are split, and copied once none is left.

        Args:
            tensor_parallel: GPUs that one copy of the model is spread over.
            width: Bytes of a number, 2 for bf16 and 4 for fp32.
        """
        heads = max(self.num_key_value_heads // tensor_parallel, 1)
        return 2 * width * self.num_layers * heads * self.head_dim


def model_size(architecture: Mapping[str, Any]) -> ModelSize:
    """Build the model on the meta device (no memory, no download) and measure it.

    Args:
        architecture: Fields of the Hugging Face configuration, `model_type` among them.

    Raises:
        ConfigError: If `model_type` is missing or unknown, a size is not positive, or the model has another structure.
    """
    model = _build(architecture)
    config, layers = model.config, model.get_decoder().layers
    ends = {id(end.weight): end.weight.numel() for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    layer, attention = layers[0], getattr(layers[0], "self_attn", None)
    if attention is None or not hasattr(config, "intermediate_size"):
        raise ConfigError(
            f"`architecture.model_type` must have attention and MLP in each layer, but {config.model_type} has not. "
            "Plans are for architectures such as qwen3, qwen2 or llama."
        )
    inside = {id(parameter) for each in layers for parameter in each.parameters()}
    return ModelSize(
        layer_shapes=tuple(_shapes(layer)),
        root_shapes=tuple(tuple(each.shape) for each in model.parameters() if id(each) not in inside),
        linear_shapes={name.rpartition(".")[2]: shape for name, shape in _linears(layer)},
        num_embedding_parameters=sum(ends.values()),
        num_layers=len(layers),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        vocab_size=config.vocab_size,
        has_qk_norm=hasattr(attention, "q_norm"),
    )


def _build(architecture: Mapping[str, Any]) -> Any:
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"`architecture.model_type` must name a Hugging Face architecture, but got {model_type!r}. "
            "Write for example qwen3, qwen2 or llama."
        )
    for name, value in fields.items():
        if type(value) is int and value < 1 and name.endswith(("_size", "_heads", "_layers", "_dim")):
            raise ConfigError(f"`architecture.{name}` must be at least 1, but got {value}. Copy it from the model.")
    config = AutoConfig.for_model(model_type, **fields)
    try:
        return meta_model(config)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"`architecture` must describe a causal language model, but {model_type} cannot be built from it: {error}. "
            "Copy it from the model's config.json."
        ) from error


def shard_numbers(shapes: Shapes, num_ranks: int) -> int:
    """Return the numbers of parameters on the rank that holds most: rows are split, the last ranks have fewer."""
    return sum(-(-shape[0] // num_ranks) * math.prod(shape[1:]) for shape in shapes)


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    return (tuple(parameter.shape) for parameter in module.parameters())


def _linears(module: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, each in module.named_modules():
        if type(each) is nn.Linear:
            yield name, (each.out_features, each.in_features)
