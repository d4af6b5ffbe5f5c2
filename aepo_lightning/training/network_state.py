"""What the modules share beside training: where the network is, what a checkpoint says of it, how they log."""

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch

from aepo_lightning.checkpoints import (
    IDENTITY_KEY,
    RANDOM_KEY,
    check_before_loading,
    check_format,
    check_shapes,
    describe,
    random_states,
    restore_random_states,
)
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.builder import Place, place_of
from aepo_lightning.policy.sharding.fsdp2 import is_sharded
from aepo_lightning.policy.sharding.options import ShardingOptions


@runtime_checkable
class _HasNetwork(Protocol):
    network: PolicyNetwork | None


def prepare_stage(trainer: L.Trainer) -> None:
    """Have checkpoints checked before they are loaded, and silence one warning of Lightning that is wrong here.

    An engine in this process may set up a process group of its own, and everything logged is reduced already.
    """
    check_before_loading(trainer.strategy)
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*, sync_dist=True\)`")


def log_reduced(
    module: L.LightningModule, values: Mapping[str, float], prog_bar: bool = False, logger: bool = True
) -> None:
    """Log what is the same on every rank: with both flags Lightning neither reduces it nor warns about that."""
    # Without a logger Lightning would warn about every name.
    logger = logger and bool(module.trainer.loggers)
    module.log_dict(dict(values), prog_bar=prog_bar, logger=logger, sync_dist=True, rank_zero_only=True)


def forget_logged(module: L.LightningModule, names: Collection[str]) -> None:
    """Let a step that has no such numbers log none: Lightning would give callbacks and loggers the last ones again."""
    if not names:
        return  # what follows makes Lightning compute every metric anew
    metrics = module.trainer.callback_metrics
    for result in (module.trainer._results or {}).values():
        if result.meta.name in names:
            result.reset()
    for name in names:
        metrics.pop(name, None)


def all_finite(*values: float) -> bool:
    """Return whether the values of every rank are finite numbers. Collective."""
    return not all_reduce([float(not all(map(math.isfinite, values)))], "max")[0]


@contextmanager
def building(module: L.LightningModule, sharding: ShardingOptions, defer_gradient_sync: bool) -> Iterator[Place]:
    """Build the network of a module inside, with where it is to live.

    Lightning asks for it with the GPU as the device of all new tensors: other numbers would be drawn there.

    Raises:
        ConfigError: If the trainer's precision or its strategy cannot train it.
    """
    place = place_of(module._trainer, module.device_mesh, sharding, defer_gradient_sync)
    with torch.device("cpu"):
        yield place


@contextmanager
def left_in_place(module: _HasNetwork, sharding: ShardingOptions) -> Iterator[None]:
    """Hide offloaded weights while a module moves: FSDP brings them to the device when they are needed."""
    network = module.network
    if network is None or not (sharding.cpu_offload and is_sharded(network)):
        yield
        return
    module.network = None
    try:
        yield
    finally:
        module.network = network


def add_identity(checkpoint: dict[str, Any], network: PolicyNetwork, trainer: L.Trainer) -> None:
    """Add what a checkpoint belongs to, and the random generators of every rank. Collective."""
    strategy = type(trainer.strategy).__name__
    checkpoint[IDENTITY_KEY] = describe(network, network.model.config, trainer.world_size, strategy)
    checkpoint[RANDOM_KEY] = random_states()


def take_identity(checkpoint: dict[str, Any], network: PolicyNetwork, trainer: L.Trainer) -> None:
    """Refuse what belongs to another model, and go on with the saved random generators.

    A sharded strategy has loaded the weights by now; it refuses other shapes by itself, before it loads any.

    Raises:
        DataError: If the checkpoint has another format, or parameters of other shapes.
    """
    check_format(checkpoint.get(IDENTITY_KEY), "The checkpoint")
    check_shapes(checkpoint[IDENTITY_KEY], network, "The checkpoint")
    restore_random_states(checkpoint[RANDOM_KEY], trainer.global_rank, trainer.world_size)
