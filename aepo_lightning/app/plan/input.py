"""What a plan is made from: the model, the machine, the batch and the engine's share of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aepo_lightning.errors import ConfigError

ENGINE_WORKSPACE_GIB = 2.0
"""What vLLM is planned to need inside its share beside weights and cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """The settings of a run that decide its memory and its batch arithmetic.

    Raises:
        ConfigError: If a setting has no meaning, or two of them cannot work together.
    """

    architecture: Mapping[str, Any]
    """Fields of the Hugging Face configuration, `model_type` among them."""
    num_gpus: int
    """GPUs that the model is sharded over."""
    num_iterations: int
    """Rollout iterations of the whole run, which are the epochs of the trainer."""
    questions_per_iteration: int
    group_size: int
    """k: trajectories of each question."""
    questions_per_step: int
    """Questions whose trajectories make one optimiser step."""
    max_prompt_tokens: int
    max_response_tokens: int
    """Longest response, tool results included."""
    micro_batch_tokens: int
    """Token budget of one forward and backward pass on one GPU. A longer trajectory has a pass of its own."""
    gpu_memory_gib: float = 80.0
    """Memory of one device."""
    gpus_per_node: int = 8
    num_epochs: int = 1
    """Passes of the update over the trajectories of an iteration."""
    is_pretrained: bool = True
    """Whether weights are read from files, of which shards are read as such."""
    sharding: Literal["fsdp2", "fsdp1", "replicated", "none"] = "fsdp2"
    """How several devices hold the model: in shards, or a copy each; `none` is one device without any wrapper."""
    is_gpu: bool = True
    """Whether the devices are GPUs. On a CPU heads widen 16-bit weights, and AdamW steps one weight after another."""
    is_mixed_precision: bool = True
    """Under sharding, compute in bf16 with fp32 weights and reductions."""
    is_resharded_after_forward: bool = True
    """Under sharding, whether a layer is freed after its forward pass and gathered again for the backward pass."""
    weight_bytes: Literal[2, 4] = 4
    """Of each weight that the optimiser updates, and of its gradient and its states."""
    adapter_rank: int = 0
    """Rank of the low-rank matrices that are trained in place of the weights; 0 trains the weights."""
    adapter_targets: tuple[str, ...] = ()
    """Last parts of the names of the linear layers with an adapter. Empty means all."""
    is_cpu_offloaded: bool = False
    """Under sharding, keep weights, gradients and optimiser states in host memory."""
    packing: Literal["padded", "flat", "tree"] = "padded"
    is_checkpointed: bool = True
    """Whether layers keep only their input and compute the rest again in the backward pass."""
    logprob_chunk_tokens: int = 256
    """Tokens whose logits exist at the same time."""
    has_reference: bool = False
    """Whether a frozen, sharded bf16 reference model stays on the GPUs."""
    is_gradient_sync_deferred: bool = False
    """Whether only the last micro-batch of a step reduces gradients; the others then keep them whole, in fp32."""
    engine_memory_fraction: float = 0.6
    """Share of each GPU that an engine in the same process claims while awake; 0 if generation runs elsewhere."""
    engine_share_bytes: int = 0
    """Bytes of each device that it claims instead, where they are known; 0 where they are not."""
    engine_number_bytes: Literal[2, 4] = 2
    """Of each of its weights, keys and values."""
    engine_tensor_parallel: int = 1
    """GPUs that one copy of the engine is spread over."""
    engine_sleeps: bool = True
    """Whether the engine frees its weights and cache during the update."""
    engine_keeps_weights: bool = False
    """Whether they go to host memory meanwhile."""
    engine_workspace_gib: float = ENGINE_WORKSPACE_GIB
    """What the engine needs inside its share beside weights and cache while it generates: activations, CUDA graphs."""
    overhead_gib: float = 2.0
    """CUDA context, communication buffers and fragmentation."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        self._check_counts()
        if self.questions_per_step > self.questions_per_iteration:
            raise ConfigError(
                f"`questions_per_step` must be at most `questions_per_iteration`, but got {self.questions_per_step} "
                f"of {self.questions_per_iteration}. Lower the one or raise the other."
            )
        if self.num_gpus % self.engine_tensor_parallel:
            raise ConfigError(
                f"`engine_tensor_parallel` must divide `num_gpus`, but got {self.engine_tensor_parallel} for "
                f"{self.num_gpus} GPUs. Choose a divisor."
            )
        if not 0 <= self.engine_memory_fraction <= 1:
            raise ConfigError(
                f"`engine_memory_fraction` must be in [0, 1], but got {self.engine_memory_fraction}. "
                "0 is for an engine on other GPUs."
            )
        if self.sharding == "none" and self.num_gpus > 1:
            raise ConfigError(
                f"`sharding` must spread the model over {self.num_gpus} GPUs, but got 'none'. Use `strategy=fsdp`."
            )
        if self.adapter_rank < 0:
            raise ConfigError(f"`adapter_rank` must be at least 0, but got {self.adapter_rank}. 0 trains all weights.")
        if not self.gpu_memory_gib > 0:
            raise ConfigError(f"`gpu_memory_gib` must be positive, but got {self.gpu_memory_gib}. Give GiB.")
        for name in ("engine_workspace_gib", "overhead_gib", "engine_share_bytes"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` must be at least 0, but got {getattr(self, name)}. Raise it.")

    def _check_counts(self) -> None:
        """Refuse counts below 1."""
        for name in (
            "num_gpus",
            "gpus_per_node",
            "num_iterations",
            "questions_per_iteration",
            "group_size",
            "questions_per_step",
            "num_epochs",
            "max_prompt_tokens",
            "max_response_tokens",
            "micro_batch_tokens",
            "logprob_chunk_tokens",
            "engine_tensor_parallel",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {getattr(self, name)}. Raise it.")

    @property
    def has_engine(self) -> bool:
        """Whether an engine claims memory of the devices."""
        return self.engine_share_bytes > 0 or self.engine_memory_fraction > 0

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the model."""
        return self.sharding in ("fsdp2", "fsdp1")

    @property
    def device_name(self) -> str:
        """What one device is called."""
        return "GPU" if self.is_gpu else "process"

    @property
    def devices_name(self) -> str:
        """What all of them are called."""
        return f"{self.num_gpus} GPUs" if self.is_gpu else f"{self.num_gpus} processes"

    @property
    def micro_batches_per_step(self) -> int:
        """Forward and backward passes of each GPU in one optimiser step, at most."""
        rows = max(self.micro_batch_tokens // self.max_trajectory_tokens, 1)
        return math.ceil(math.ceil(self.questions_per_step * self.group_size / self.num_gpus) / rows)

    @property
    def max_trajectory_tokens(self) -> int:
        """Longest trajectory: prompt and response."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def pass_tokens(self) -> int:
        """Tokens of the largest forward and backward pass on one GPU."""
        return max(self.micro_batch_tokens, self.max_trajectory_tokens)
