"""What a checkpoint belongs to, as plain values, and whether that is the policy of this run."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from aepo_lightning import __version__
from aepo_lightning.errors import DataError

FORMAT = 1
"""Version of what this library adds to Lightning's checkpoints. Another number is refused."""
IDENTITY_KEY = "aepo_record"
"""Where a checkpoint holds its identity."""
RANDOM_KEY = "aepo_random_states"

_ARCHITECTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)
"""Fields of a Hugging Face configuration that change what the same weights compute, or their shapes."""
_MOST_LINES = 8


def describe(network: nn.Module, config: Any, num_ranks: int, strategy: str) -> dict[str, Any]:
    """Return the identity of a checkpoint.

    Args:
        network: The policy. Sharded parameters are recorded with their whole shapes.
        config: Its Hugging Face configuration.
        num_ranks: Processes that train.
        strategy: Name of Lightning's strategy.
    """
    return {
        "format": FORMAT,
        "library": __version__,
        "num_ranks": num_ranks,
        "strategy": strategy,
        "architecture": architecture_of(config),
        "shapes": shapes_of(network),
    }


def architecture_of(config: Any) -> dict[str, str]:
    """Return the fields of a configuration that make the architecture, as text."""
    return {name: _text(getattr(config, name)) for name in _ARCHITECTURE if getattr(config, name, None) is not None}


def _text(value: Any) -> str:
    return str(dict(sorted(value.items()))) if isinstance(value, Mapping) else str(value)


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """Return the shape of every parameter; nothing under FSDP1, which flattens them."""
    if any(isinstance(module, FullyShardedDataParallel) for module in network.modules()):
        return {}
    return {name: list(parameter.shape) for name, parameter in network.named_parameters()}


def check_format(identity: Any, origin: str) -> None:
    """Refuse what another version of the format wrote.

    Raises:
        DataError: If it was written by another version, or not by this library.
    """
    found = identity.get("format") if isinstance(identity, Mapping) else None
    if found != FORMAT:
        version = identity.get("library", "unknown") if isinstance(identity, Mapping) else "unknown"
        raise DataError(
            f"{origin} must have format {FORMAT}, but got {found} (written by version {version}). Continue it with the "
            "version that wrote it, or start a new run from its exported policy."
        )


def check_architecture(identity: Mapping[str, Any], config: Any, origin: str) -> None:
    """Refuse a checkpoint of another architecture, before a model exists.

    Args:
        identity: Of the checkpoint.
        config: The Hugging Face configuration of the policy of this run.
        origin: The checkpoint's path, for the message.

    Raises:
        DataError: If a field differs; each is listed.
    """
    _refuse_differences(identity["architecture"], architecture_of(config), origin)


def check_shapes(identity: Mapping[str, Any], network: nn.Module, origin: str) -> None:
    """Refuse a checkpoint whose parameters have other names or shapes than those of the network.

    Raises:
        DataError: If one differs; they are listed.
    """
    own = shapes_of(network)
    if own and identity["shapes"]:
        _refuse_differences(identity["shapes"], own, origin)


def _refuse_differences(saved: Mapping[str, Any], own: Mapping[str, Any], origin: str) -> None:
    names = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
    if not names:
        return
    lines = [f"  {name}: {_or_none(saved, name)} in it, {_or_none(own, name)} here" for name in names[:_MOST_LINES]]
    more = [f"  and {len(names) - _MOST_LINES} more"] if len(names) > _MOST_LINES else []
    raise DataError(
        f"{origin} must hold the policy of this run, but it is of another model. No weight was changed. Give the "
        "`model` (and its adapters) that it was trained with, or another `ckpt_path`. What differs:\n"
        + "\n".join((*lines, *more))
    )


def _or_none(values: Mapping[str, Any], name: str) -> str:
    return str(values.get(name, "none"))
