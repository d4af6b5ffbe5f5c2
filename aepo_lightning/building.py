"""How the network of a policy comes about: wrapped, and sharded per decoder layer where there is a device mesh."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from aepo_lightning.network import PolicyNetwork
from aepo_lightning.protocols import PolicySource


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkBuilder:
    """Builds the network that is trained and its frozen reference, each as often as asked."""

    policy: PolicySource
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logprob_chunk_size: int = 256
    """Rows of logits that exist at once."""
    mixed_precision: bool = False
    """Under FSDP2, compute in bfloat16 with float32 weights and reductions."""

    def trained(self, mesh: DeviceMesh | None) -> PolicyNetwork:
        """Return a network in training mode.

        Args:
            mesh: The strategy's device mesh with an axis `data_parallel`, or None to keep the network whole.
        """
        # `from_pretrained` returns a model in evaluation mode, in which Hugging Face ignores gradient checkpointing.
        return self._build(mesh).train()

    def reference(self, mesh: DeviceMesh | None) -> PolicyNetwork:
        """Return a frozen network with the first weights, sharded like the trained one."""
        return self._build(mesh).eval().requires_grad_(False)

    def _build(self, mesh: DeviceMesh | None) -> PolicyNetwork:
        network = PolicyNetwork(self.policy.build_model(), self.logprob_chunk_size, self.gradient_checkpointing)
        if mesh is not None:
            options: dict[str, Any] = {"mesh": mesh["data_parallel"]}
            if self.mixed_precision:
                options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            for layer in network.model.model.layers:
                fully_shard(layer, **options)
            fully_shard(network, **options)
        return network
