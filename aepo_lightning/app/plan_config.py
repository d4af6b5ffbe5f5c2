"""From a composed configuration to the input of a plan."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from aepo_lightning.app.plan_input import PlanInput
from aepo_lightning.errors import ConfigError


def plan_input(cfg: DictConfig) -> PlanInput:
    """Read what decides memory and batch arithmetic; nothing is built or loaded.

    Raises:
        ConfigError: If the model's architecture is not written in the configuration.
    """
    model = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(model, dict), "a model is a mapping"
    architecture: dict[str, Any] = dict(model.get("architecture") or {})
    if not architecture:
        raise ConfigError("`plan=true` needs `model.architecture`, but it is empty. Copy the model's config there.")
    architecture.setdefault("vocab_size", 512)
    settings = cfg.rollout.settings
    return PlanInput(
        architecture=architecture,
        num_gpus=int(cfg.trainer.devices) * int(cfg.trainer.num_nodes),
        num_iterations=cfg.trainer.max_epochs,
        questions_per_iteration=cfg.data.questions_per_iteration,
        group_size=settings.budget,
        questions_per_step=cfg.experience.questions_per_step,
        max_prompt_tokens=cfg.engine.max_model_len - settings.max_response_tokens,
        max_response_tokens=settings.max_response_tokens,
        micro_batch_tokens=cfg.experience.max_tokens_per_micro_batch,
        is_checkpointed=cfg.module.gradient_checkpointing,
        logprob_chunk_tokens=cfg.module.logprob_chunk_size,
        has_reference=cfg.algorithm.kl_penalty.coefficient > 0,
        is_gradient_sync_deferred=cfg.module.defer_gradient_sync,
    )
