"""What a plan is made from: the model, the machine, the batch and the engine's share of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aepo_lightning.errors import ConfigError


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
    engine_tensor_parallel: int = 1
    """GPUs that one copy of the engine is spread over."""
    engine_sleeps: bool = True
    """Whether the engine frees its weights and cache during the update."""
    engine_workspace_gib: float = 2.0
    """What the engine needs inside its share beside weights and cache: activations, CUDA graphs."""
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
        if not self.gpu_memory_gib > 0:
            raise ConfigError(f"`gpu_memory_gib` must be positive, but got {self.gpu_memory_gib}.")
        for name in ("engine_workspace_gib", "overhead_gib"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` must be at least 0, but got {getattr(self, name)}.")

    def _check_counts(self) -> None:
        """Refuse counts below 1."""
        for name in (
            "num_gpus",
            "num_iterations",
            "questions_per_iteration",
            "group_size",
            "questions_per_step",
            "max_prompt_tokens",
            "max_response_tokens",
            "micro_batch_tokens",
            "logprob_chunk_tokens",
            "engine_tensor_parallel",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")

    @property
    def max_trajectory_tokens(self) -> int:
        """Longest trajectory: prompt and response."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def pass_tokens(self) -> int:
        """Tokens of the largest forward and backward pass on one GPU."""
        return max(self.micro_batch_tokens, self.max_trajectory_tokens)
