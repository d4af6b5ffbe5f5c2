"""How a network is sharded, whichever strategy shards it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingOptions:
    """What FSDP2 and FSDP1 have in common."""

    mixed_precision: bool = False
    """Compute in bfloat16 with float32 weights and reductions."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimiser state on the CPU, where the optimiser then steps."""
    reshard_after_forward: bool = True
    """Free a gathered layer after its forward pass and gather it again for the backward pass."""
