"""How far rollouts and update are apart: which settings fit together, and how stale trees are."""

import logging
from typing import Protocol, runtime_checkable

from aepo_lightning.branching import NeverBranch
from aepo_lightning.contracts.engine import Engine, RepeatableEngine
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import ImportanceCorrection
from aepo_lightning.rollout import Independent, RolloutSettings
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.trained_policy import TrainedPolicy

logger = logging.getLogger(__name__)


@runtime_checkable
class SharesTrainer(Protocol):
    """An engine in the trainer's own processes: after a rollout all ranks must call it before anything else."""

    def settle(self) -> None:
        """Serve the other ranks until none has a request."""
        ...


def sampling_problem(settings: RolloutSettings) -> str | None:
    """Return why the engine's log-probs do not say how tokens were drawn, or None if they do.

    Args:
        settings: Of the training rollouts.
    """
    found = []
    if settings.top_p < 1:
        found.append(f"top_p={settings.top_p}")
    if settings.top_k > 0:
        found.append(f"top_k={settings.top_k}")
    if settings.repetition_penalty != 1:
        return (
            f"With repetition_penalty={settings.repetition_penalty} tokens are drawn from other scores than the "
            "policy's, but log-probs and entropies are the policy's, in the engine and in the trainer. Importance "
            "ratios do not know of it. Train with repetition_penalty=1, or read them accordingly."
        )
    if not found:
        return None
    return (
        f"With {' and '.join(found)} tokens are drawn from the most likely ones only, but log-probs and entropies are "
        "those of the whole distribution, in the engine and in the trainer. Importance ratios, weights and the "
        "mismatch KL then compare the two whole distributions, not the one that was sampled from: each true ratio is "
        "smaller by the share of probability that was kept. Train with top_p=1 and top_k=0, or read them accordingly."
    )


def warn_about_sampling(settings: RolloutSettings) -> None:
    """Log what `sampling_problem` finds, if anything."""
    if problem := sampling_problem(settings):
        logger.warning("%s", problem)


@runtime_checkable
class _RollsOut(Protocol):
    """Data of a run, as far as it must agree with the module."""

    engine: Engine
    algorithm: Algorithm

    @property
    def old_logprobs(self) -> str: ...

    @property
    def is_overlapped(self) -> bool: ...


def check_agreement(data: _RollsOut, module: TrainedPolicy, settings: RolloutSettings) -> None:
    """Check that the rollouts are those which the module's loss is for.

    Args:
        data: What grows them.
        module: What is trained on them.
        settings: Of the training rollouts.

    Raises:
        ConfigError: If they are not.
    """
    trained = getattr(module, "algorithm", data.algorithm)
    if trained != data.algorithm:
        raise ConfigError(
            f"`algorithm` must be the same for module and data, but got {trained.name!r} and {data.algorithm.name!r}"
            f"{' with other parts' if trained.name == data.algorithm.name else ''}. Pass one value to both."
        )
    check_time_limit(data.algorithm, settings.timeout_s)
    check_correction(data.old_logprobs, module.importance_correction)
    if data.is_overlapped:
        check_overlap(data.engine, module.importance_correction)


def check_time_limit(algorithm: Algorithm, timeout_s: float | None) -> None:
    """Check that what a clock cuts off decides about no other trajectory: no record would say how.

    Args:
        algorithm: Its trajectories branch, or one is looked at before the others, or each stands alone.
        timeout_s: Seconds for a whole trajectory; None is no limit.

    Raises:
        ConfigError: If there is a limit for trajectories that do not stand alone.
    """
    is_alone = isinstance(algorithm.branch_policy, NeverBranch | Independent) and not algorithm.allocator.needs_probe
    if timeout_s is not None and not is_alone:
        raise ConfigError(
            f"`timeout_s` of the sampling settings must be null for an algorithm that branches, but got {timeout_s:g} "
            f"for {algorithm.name!r}: what a trajectory decided in a turn that was cut off could not be repeated "
            "after a crash or in a replay. Limit `max_response_tokens` and the tools, or train with algorithm=grpo."
        )


def check_correction(old_logprobs: str, correction: ImportanceCorrection) -> None:
    """Check that batches and loss speak of the same old log-probs.

    Raises:
        ConfigError: If they do not.
    """
    if correction.old_logprobs != old_logprobs:
        raise ConfigError(
            f"`importance_correction.old_logprobs` must be that of the experience, {old_logprobs!r}, but got "
            f"{correction.old_logprobs!r}. Pass the same word to both."
        )


def needs_whole_rollouts(engine: Engine, correction: ImportanceCorrection) -> bool:
    """Return whether a rollout that was cut off is made again as a whole, so that the same weights come out of it.

    The rest of it grows in other batches, where the engine's log-probs differ in their last bits. That reaches the
    weights if the loss reads these log-probs, and can be avoided if the engine repeats itself.
    """
    is_read = correction.mode != "none" or correction.old_logprobs == "sampler"
    return is_read and isinstance(engine, RepeatableEngine) and engine.is_repeatable


def check_overlap(engine: Engine, correction: ImportanceCorrection) -> None:
    """Check that rollouts may run beside the update.

    Raises:
        ConfigError: If the engine shares processes with the trainer, or nothing would correct for stale rollouts.
    """
    if isinstance(engine, SharesTrainer):
        raise ConfigError(
            f"`data.overlap` must be false for {type(engine).__name__}, but got true. It generates in the trainer's "
            "processes and sleeps during the update. Use engine=vllm_server on other devices, or engine=transformers."
        )
    if correction.mode == "none" and correction.old_logprobs != "sampler":
        raise ConfigError(
            "`module.importance_correction.mode` must be 'truncated' or 'masked' with data.overlap=true, but got "
            "'none'. Rollouts are then one iteration old, and ratios to the trainer's log-probs do not know that."
        )
