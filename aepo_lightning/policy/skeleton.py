"""Models without weights: built on the meta device, and given memory once they are sharded.

What a model computes from its configuration while it is built, such as the frequencies of rotary embeddings, is in no
file and would be lost on the meta device. It is computed here, in its own precision, and kept.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from aepo_lightning.errors import ConfigError


def build_skeleton(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return a causal language model whose parameters are on the meta device and take no memory.

    Args:
        config: The architecture.
        dtype: Precision of the parameters.

    Raises:
        ConfigError: If the architecture computes a buffer in a way that cannot be repeated here.
    """
    model = meta_model(config, dtype)
    _compute_buffers(model)
    return model


def meta_model(config: PretrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a causal language model that is on the meta device altogether: names, shapes and modules, no numbers.

    Args:
        config: The architecture.
        dtype: Precision of the parameters. None takes that of `config`.
    """
    given = {} if dtype is None else {"dtype": dtype}
    is_own_code = has_own_code(config)  # whoever read it has allowed that
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(config), trust_remote_code=is_own_code, **given
        )
    return model


def has_own_code(part: object) -> bool:
    """Return whether a configuration or a model is of a class that came with its files."""
    return type(part).__module__.startswith("transformers_modules")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a model, which are what is sharded.

    Raises:
        ConfigError: If they are not where they are in most models.
    """
    layers = getattr(model.model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"A model that is sharded must have its decoder layers in `model.layers`, but {type(model).__name__} has "
            f"{sorted(name for name, _ in model.model.named_children())}. Train it whole, or its text model alone."
        )
    return layers


def materialise(module: nn.Module, device: torch.device, is_unit: Callable[[nn.Module], bool] | None = None) -> None:
    """Give the meta parameters of a module memory with arbitrary content; buffers stay as they are.

    Args:
        module: What to give memory.
        device: Where the parameters go.
        is_unit: Whether a module below is a unit of its own, whose parameters have memory already. Default: none is.
    """
    for owner in _owners(module, is_unit):
        buffers = {name: buffer for name, buffer in owner.named_buffers(recurse=False) if not buffer.is_meta}
        owner.to_empty(device=device, recurse=False)
        for name, buffer in buffers.items():
            owner.register_buffer(name, buffer, persistent=False)


def _owners(module: nn.Module, is_unit: Callable[[nn.Module], bool] | None) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        if is_unit is None or not is_unit(child):
            yield from _owners(child, is_unit)


def _compute_buffers(model: PreTrainedModel) -> None:
    """Put the buffers that are in no file on the CPU and let the architecture compute them."""
    stored = model.state_dict().keys()
    owners = {name.rpartition(".")[0] for name, _ in model.named_buffers() if name not in stored}
    for owner_name in sorted(owners):
        owner = model.get_submodule(owner_name)
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if f"{owner_name}.{name}" not in stored:
                owner.register_buffer(name, _unset(buffer), persistent=False)
        # What transformers itself does after it has loaded weights into a model that was built on the meta device.
        model._init_weights(owner)  # type: ignore[no-untyped-call]
        for name, buffer in owner.named_buffers(recurse=False):
            if _is_unset(buffer):
                raise ConfigError(
                    f"`{owner_name}.{name}` of {type(model).__name__} is in no file and cannot be computed from the "
                    "configuration alone. Use another architecture, or train on one device without sharding."
                )


def _unset(buffer: Tensor) -> Tensor:
    """Return a buffer on the CPU whose content shows that nothing has been computed yet."""
    return torch.full(buffer.shape, _mark(buffer.dtype), dtype=buffer.dtype, device="cpu")


def _is_unset(buffer: Tensor) -> bool:
    if buffer.is_meta:
        return False
    return bool((buffer.isnan() if buffer.is_floating_point() else buffer == _mark(buffer.dtype)).any())


def _mark(dtype: torch.dtype) -> float | int:
    if dtype.is_floating_point:
        return torch.nan
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min
