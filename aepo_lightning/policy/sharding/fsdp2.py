"""Sharding a network over the ranks of a device mesh (FSDP2), and what a step does differently with shards.

Weights are read in shards: the network is built without memory, sharded per decoder layer, and every rank then reads
its own rows from the files. What has no files is built whole on the CPU of every rank and sliced there.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from aepo_lightning.distributed.collectives import all_reduce, together
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.fsdp1 import is_fsdp1
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.skeleton import decoder_layers, materialise
from aepo_lightning.policy.weight_files import ReadCount, WeightFiles, weight_targets

_TINY = 1e-6
"""What torch adds to the norm that it divides by."""


def shard(network: PolicyNetwork, mesh: DeviceMesh, options: ShardingOptions) -> None:
    """Shard a network per decoder layer, in place. Embedding, final norm and head form the root unit.

    Raises:
        ConfigError: If the mesh splits more than the data.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ConfigError(
            f"`strategy.tensor_parallel_size` must be 1, but got {mesh['tensor_parallel'].size()}. The policy is "
            "sharded over all ranks; shard the engine's model with `engine.tensor_parallel_size`."
        )
    shared: dict[str, Any] = {"mesh": mesh["data_parallel"]}
    if options.mixed_precision:
        shared["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if options.cpu_offload:
        shared["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for layer in decoder_layers(network.model):
        fully_shard(layer, reshard_after_forward=options.reshard_after_forward, **shared)
    fully_shard(network, **shared)


def load_shards(network: PolicyNetwork, folder: Path, mesh: DeviceMesh, options: ShardingOptions) -> ReadCount:
    """Give a sharded skeleton memory and read this rank's rows of every weight. Collective.

    Returns:
        What this rank has read.

    Raises:
        DataError: On every rank, if any rank cannot read its part.
    """
    device = torch.device("cpu") if options.cpu_offload else _device(mesh)
    materialise(network, device)
    network.model.tie_weights()  # torch keeps ties of distributed tensors only

    def read() -> ReadCount:
        files = WeightFiles(folder)
        files.load(weight_targets(network.model))
        return files.count

    return together(read)


def _device(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def is_sharded(network: nn.Module) -> bool:
    """Whether a network is sharded, in either way."""
    return isinstance(network, FSDPModule) or is_fsdp1(network)


def forward_context(trainer: Trainer | None) -> AbstractContextManager[None]:
    """Return the context in which Lightning runs a training step: autocast where the trainer's precision is mixed."""
    return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()


def reshard(network: nn.Module) -> None:
    """Give back what a forward pass without backward pass has gathered and FSDP2 keeps: the root unit at least."""
    for unit in network.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


@contextmanager
def gradient_sync(network: nn.Module, is_on: bool) -> Iterator[None]:
    """Reduce the gradients of the backward passes in this context over the ranks, or leave that to a later one."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(is_on)
        yield
    elif is_fsdp1(network) and not is_on:
        with network.no_sync():
            yield
    else:
        yield


def clip_gradients(network: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients down to an L2 norm over all ranks. Collective where the network is sharded.

    Shards need not be where the collectives of the strategy are: offloaded gradients lie on the CPU, and NCCL cannot
    reduce them. So only the norms of the shards travel.

    Returns:
        The norm before clipping.
    """
    if is_fsdp1(network):
        return network.clip_grad_norm_(max_norm)
    if not isinstance(network, FSDPModule):
        return nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    shards = [_local(parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
    norm = all_reduce([float(nn.utils.get_total_norm(shards)) ** 2])[0] ** 0.5
    for shard in shards:
        shard.mul_(min(max_norm / (norm + _TINY), 1.0))
    return torch.tensor(norm)


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
