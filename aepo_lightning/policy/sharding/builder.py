"""How the network of a policy comes about: model, wrapper, shards, memory, weights, in this order."""

import logging
from dataclasses import dataclass, field
from typing import Literal

from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.device_mesh import DeviceMesh

from aepo_lightning.contracts.policy import PolicySource, StoredWeights
from aepo_lightning.distributed.collectives import first_on_each_node
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.logit_blocks import AUTO, ChunkSize, chunk_rows
from aepo_lightning.policy.lora import LoRA
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.sharding.fsdp1 import check_strategy, wrap_units
from aepo_lightning.policy.sharding.fsdp2 import load_shards, shard
from aepo_lightning.policy.sharding.options import ShardingOptions
from aepo_lightning.policy.skeleton import build_skeleton

logger = logging.getLogger(__name__)

Place = DeviceMesh | Literal["fsdp1"] | None
"""Where a network lives: sharded over the `data_parallel` axis of the strategy's device mesh (FSDP2), in the units of
Lightning's `FSDPStrategy` while its wrapping context is open, or whole in this process."""

_PRECISIONS = ("32-true", "bf16-mixed")


def place_of(
    trainer: Trainer | None, mesh: DeviceMesh | None, options: ShardingOptions, defer_gradient_sync: bool
) -> Place:
    """Return where the strategy of a trainer wants networks to live.

    Raises:
        ConfigError: If the trainer's precision or its strategy cannot train what is asked for.
    """
    if trainer is None:
        return mesh
    strategy, precision = trainer.strategy, trainer.precision
    if isinstance(strategy, FSDPStrategy):
        check_strategy(strategy, options, defer_gradient_sync)
        return "fsdp1"
    if precision not in _PRECISIONS:
        raise ConfigError(
            f"`trainer.precision` must be one of {', '.join(_PRECISIONS)}, but got {precision}: it would also round "
            "advantages, or scale gradients before they are clipped. Set `module.mixed_precision=true` to compute in "
            "bfloat16 with float32 weights under FSDP, or `model.dtype=bfloat16` for bfloat16 weights."
        )
    if options.cpu_offload and mesh is None:
        raise ConfigError("`module.cpu_offload` must go with `strategy=fsdp` or `fsdp1`. Set one of them, or false.")
    return mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkBuilder:
    """Builds the network that is trained and its frozen reference, each as often as asked."""

    policy: PolicySource
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logprob_chunk_size: ChunkSize = AUTO
    """Rows of logits that exist at once, or `auto`: 256 MiB of them."""
    sharding: ShardingOptions = field(default_factory=ShardingOptions)
    """How to shard where the strategy does."""
    fused_norms: bool = False
    """Compute RMS norms with one kernel each."""
    adapter: LoRA | None = None
    """Train this beside the weights instead of the weights."""

    def __post_init__(self) -> None:
        """Refuse a number of rows without meaning."""
        try:
            chunk_rows(self.logprob_chunk_size, num_words=1)
        except ValueError as error:
            raise ConfigError(str(error).replace("`chunk_size`", "`logprob_chunk_size`")) from error

    def trained(self, place: Place) -> PolicyNetwork:
        """Return a network in training mode. Collective where it is sharded.

        Args:
            place: Where it lives.

        Raises:
            ConfigError: If it cannot live there.
            DataError: If its weights cannot be read.
        """
        return self._build(place, is_trained=True)

    def reference(self, place: Place) -> PolicyNetwork:
        """Return a frozen network with the first weights, in the same place."""
        return self._build(place, is_trained=False)

    def _build(self, place: Place, is_trained: bool) -> PolicyNetwork:
        stored = None if place is None else first_on_each_node(self.policy.find_weights)
        adapter = self.adapter if is_trained else None
        if adapter is not None and place == "fsdp1":
            raise ConfigError(
                "`adapter` must be none for `strategy=fsdp1`. Use `strategy=fsdp`, which trains adapters."
            )
        network = self._wrapped(stored, adapter)
        # Before FSDP1 makes its flat parameters. `from_pretrained` returns a model in evaluation mode, in which Hugging
        # Face ignores gradient checkpointing.
        network.train(is_trained)
        if not is_trained:
            network.requires_grad_(False)
        if place == "fsdp1":
            folder = None if stored is None else stored.folder
            return wrap_units(network, self.sharding, folder)
        if place is not None:
            shard(network, place, self.sharding)
            if stored is not None:
                read = load_shards(network, stored.folder, place, self.sharding)
                if adapter is not None:
                    adapter.initialise(network.model)
                logger.info("This rank has read %.1f MB of the weights in %s.", read.num_bytes / 1e6, stored.folder)
        return network

    def _wrapped(self, stored: StoredWeights | None, adapter: LoRA | None) -> PolicyNetwork:
        """Return a skeleton where weights are read later, the whole network otherwise."""
        model = self.policy.build_model() if stored is None else build_skeleton(self.policy.config, stored.dtype)
        if adapter is not None:
            adapter.inject(model)
        return PolicyNetwork(model, self.logprob_chunk_size, self.gradient_checkpointing, fused_norms=self.fused_norms)
