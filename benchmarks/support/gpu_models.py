"""Qwen3 of the published shapes with random weights, built where they are used, and what they compute."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.support.measured_update import RandomPolicy

_COMMON = {
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
_DRY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "vocab_size": 4160,
}


def architecture(shape: str, *, is_dry: bool, **changes: Any) -> dict[str, Any]:
    """Return the configuration of Qwen3 of a shape, or a tiny one of the same kind."""
    return {**_COMMON, **SHAPES[shape], **(_DRY if is_dry else changes)}


def build_model(fields: Mapping[str, Any], dtype: torch.dtype, device: str, sharpness: float = 1.0) -> PreTrainedModel:
    """Return a model with random weights on a device.

    Args:
        fields: Of its configuration.
        dtype: Of the weights.
        device: Where they are drawn.
        sharpness: What logits are multiplied by; random weights alone give nearly the same logit to every token.
    """
    torch.manual_seed(0)
    model = RandomPolicy(architecture=fields, dtype=dtype, device=device).build_model()
    with torch.no_grad():
        model.model.norm.weight.mul_(sharpness)
    return model


def flops_per_token(fields: Mapping[str, Any], length: int) -> float:
    """Return the floating-point operations of forward and backward pass per token, nothing computed twice.

    Two for each weight of a matrix and each token forwards, four backwards, the output embedding among them; attention
    over half of `length` tokens on average.
    """
    hidden, layers = fields["hidden_size"], fields["num_hidden_layers"]
    query = fields["num_attention_heads"] * fields["head_dim"]
    key = fields["num_key_value_heads"] * fields["head_dim"]
    layer = hidden * (2 * query + 2 * key) + 3 * hidden * fields["intermediate_size"]
    matrices = layers * layer + hidden * fields["vocab_size"]
    attention = layers * 2 * query * length / 2
    return float(6 * (matrices + attention))


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, repeats: int = 3) -> float:
    """Return the median time of some work, after one time that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = perf_counter()
        work()
        synchronize(device)
        times.append(perf_counter() - start)
    return median(times[1:])


def matrix_peak(device: str, size: int) -> float:
    """Return the operations per second of a large product of random bfloat16 matrices."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    many = 20 if device == "cuda" else 1

    def multiply() -> None:
        for _ in range(many):
            _ = left @ right

    return 2 * size**3 * many / seconds(multiply, device, 5)


def copy_bandwidth(device: str, num_bytes: int) -> float:
    """Return the bytes per second that a copy within the memory of a device reads and writes."""
    source = torch.randint(127, (num_bytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds(lambda: target.copy_(source), device, 5)


def peak_gib(device: str) -> float:
    """Return the most memory that tensors have had on the device, in GiB; 0 on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else 0.0


def relative_distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the distance of two lists of tensors as a share of the second's norm, in float32."""
    pairs = [(one.float(), other.float()) for one, other in zip(found, expected, strict=True)]
    above = sum(float((one - other).square().sum()) for one, other in pairs)
    below = sum(float(other.square().sum()) for _, other in pairs)
    return float((above / below) ** 0.5)


def significant(value: float) -> float:
    """Round to three significant digits."""
    return float(f"{float(value):.3g}")
