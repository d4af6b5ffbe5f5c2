"""Sharding with Lightning's `FSDPStrategy` (FSDP1), for GPUs.

FSDP2 through `ModelParallelStrategy` is the default and does more. Here a network is wrapped while the strategy's
wrapping context is open, unit by unit, so that every call of the network is a forward pass of its own and a step may
have several micro-batches.
"""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import wrap
from transformers import PreTrainedModel
from typing_extensions import override

from aepo_lightning.distributed.collectives import together
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.skeleton import decoder_layers, materialise
from aepo_lightning.policy.weight_files import WeightFiles, weight_targets

_WRAPPED = "_fsdp_wrapped_module."


class Fsdp1Network(FullyShardedDataParallel, PolicyNetwork):
    """The outermost unit of a network, which is a network itself to whoever calls it, as FSDP2's root is."""


class ExactPrecision(FSDPPrecision):
    """Lightning's precision `32-true`, with batches left as they are: Lightning cannot copy frozen data classes."""

    def __init__(self) -> None:
        """Take float32."""
        super().__init__("32-true")

    @override
    def convert_input(self, data: Any) -> Any:
        """Return the batch, which is float32 already."""
        return data


def is_fsdp1(module: nn.Module) -> TypeGuard[FullyShardedDataParallel]:
    """Whether a module is an FSDP1 unit."""
    return isinstance(module, FullyShardedDataParallel)


def check_strategy(strategy: FSDPStrategy, options: ShardingOptions, defer_gradient_sync: bool) -> None:
    """Refuse what FSDP1 cannot do here.

    Raises:
        ConfigError: With what to set instead.
    """
    plugin = strategy.precision_plugin
    if not isinstance(plugin, ExactPrecision):
        raise ConfigError(
            f"`precision_plugin` of `FSDPStrategy` must be `ExactPrecision()`, but got {type(plugin).__name__} with "
            f"{plugin.precision}. `module.mixed_precision=true` computes in bfloat16, with float32 reductions."
        )
    ours = {"auto_wrap_policy", "device_mesh"} & set(strategy.kwargs)
    if ours or strategy.kwargs.get("use_orig_params") is False:
        raise ConfigError(
            f"`strategy` must leave wrapping to the module, but got {sorted(ours | {'use_orig_params'})}. Remove what "
            "is named here: decoder layers are units, and frozen weights need the original parameters."
        )
    if strategy._activation_checkpointing_kwargs:
        raise ConfigError(
            "`strategy` must not checkpoint activations, because that renames the weights. Set "
            "`module.gradient_checkpointing=true`."
        )
    if strategy.sharding_strategy is not ShardingStrategy.FULL_SHARD or not options.reshard_after_forward:
        raise ConfigError(
            f"`strategy.sharding_strategy` and `module.reshard_after_forward` must be FULL_SHARD and true, but got "
            f"{strategy.sharding_strategy.name} and {options.reshard_after_forward}. Weights that stay gathered "
            "would be used once more after a checkpoint has changed them. Use `strategy=fsdp`."
        )
    if options.cpu_offload and not defer_gradient_sync:
        raise ConfigError(
            "`module.cpu_offload` must go with `module.defer_gradient_sync=true` for `strategy=fsdp1`, but got false: "
            "FSDP1 cannot add up offloaded gradients of several micro-batches. `strategy=fsdp` can."
        )


def wrap_units(network: PolicyNetwork, options: ShardingOptions, folder: Path | None) -> Fsdp1Network:
    """Wrap a network per decoder layer. Collective, and only within the strategy's wrapping context.

    Args:
        network: The network, with weights or as a skeleton.
        options: How to shard.
        folder: Where a skeleton gets its weights: each unit is read whole, sharded and freed before the next one.

    Raises:
        DataError: On every rank, if any rank cannot read the weights.
    """
    settings = _settings(options)
    files = None if folder is None else together(lambda: WeightFiles(folder))
    names = set(weight_targets(network.model))
    layers = decoder_layers(network.model)
    for index, layer in enumerate(layers):
        if files is not None:
            _fill(layer, f"model.layers.{index}.", names, files)
        layers[index] = wrap(layer, **settings)
    if files is not None:
        _fill(network.model, "", names, files)
    # The root of FSDP1 stays gathered after a forward pass without backward, and the next one would not see that a
    # checkpoint has changed its shards. So the outermost unit owns no parameters.
    unit: nn.Module = wrap(wrap(network, **settings), **settings)
    assert is_fsdp1(unit), "the strategy's wrapping context is open"
    unit.__class__ = Fsdp1Network
    assert isinstance(unit, Fsdp1Network)
    return unit


def _settings(options: ShardingOptions) -> dict[str, Any]:
    """Return what the strategy's own settings give way to."""
    precision = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)  # buffers keep theirs
    return {
        "use_orig_params": True,
        "mixed_precision": precision if options.mixed_precision else None,
        "cpu_offload": CPUOffload(offload_params=options.cpu_offload),
    }


def _fill(unit: nn.Module, prefix: str, names: Collection[str], files: WeightFiles) -> None:
    """Give a unit of a skeleton memory and its weights, without the units in it.

    Args:
        unit: A decoder layer, or the model.
        prefix: What its names begin with.
        names: All that is in the files.
        files: Where the weights are.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    materialise(unit, device, is_unit=is_fsdp1)
    if isinstance(unit, PreTrainedModel):
        unit.tie_weights()
    # `state_dict` would tell the buffers that are in files, but makes every unit below a root.
    own = {prefix + name: tensor for name, tensor in itertools.chain(unit.named_parameters(), unit.named_buffers())}
    together(lambda: files.load({name: tensor.detach() for name, tensor in own.items() if name in names}))


def fsdp1_named_weights(network: FullyShardedDataParallel) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter once, whole and in float32, under its name in the Hugging Face model. Collective.

    One unit is gathered at a time. Copy what you need before asking for the next weight.
    """
    # The outermost comes first, as whichever unit is gathered first counts as the root from then on.
    for unit_name, unit in list(network.named_modules()):
        if is_fsdp1(unit):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                seen: set[int] = set()
                for name, parameter in _unit_parameters(unit.module, unit_name):
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield name.replace(_WRAPPED, "").removeprefix("model."), parameter.detach()


def _unit_parameters(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a unit without those of units nested in it."""
    if not is_fsdp1(module):
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}", parameter
        for name, child in module.named_children():
            yield from _unit_parameters(child, f"{prefix}.{name}" if prefix else name)
