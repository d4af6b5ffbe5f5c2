"""From what a user passes to the parts of a rollout: plain functions become tools and rewards."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.chat_format import ChatFormat
from aepo_lightning.contracts.engine import Engine
from aepo_lightning.contracts.reward import Reward
from aepo_lightning.contracts.tool import Tool, ToolRunner, ToolSpec
from aepo_lightning.errors import ConfigError
from aepo_lightning.rewards import as_reward
from aepo_lightning.rewards.function import RewardFunction
from aepo_lightning.rollout import RolloutParts, SamplingSettings, ScoringSettings
from aepo_lightning.tools import ToolRuntime
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.experience import ExperienceBuilder, ExperienceSettings

ChatFormatFactory: TypeAlias = Callable[[PreTrainedTokenizerBase, Sequence[ToolSpec]], ChatFormat]


def build_parts(
    *,
    engine: Engine,
    algorithm: Algorithm,
    tools: ToolRunner | Sequence[Tool | Callable[..., Any]],
    reward: Reward | RewardFunction,
    chat_format: ChatFormat | ChatFormatFactory | None,
    sampling: SamplingSettings,
    scoring: ScoringSettings,
) -> Callable[[PreTrainedTokenizerBase], RolloutParts]:
    """Check the parts of a rollout and return what completes them once the tokenizer is known.

    Raises:
        ConfigError: If a part is not what its argument asks for.
    """
    if type(sampling) is not SamplingSettings:
        raise ConfigError(
            f"`sampling` must be `SamplingSettings`, but got {type(sampling).__name__}. Budget and switches are the "
            "algorithm's: `AEPO(budget=...)`."
        )
    if algorithm.overlong is not None:
        algorithm.overlong.within(sampling.max_response_tokens)
        if algorithm.overlong.factor and getattr(reward, "punishes_overlong", False):
            raise ConfigError(
                f"`overlong.factor` of the algorithm must be 0 beside a reward with an `OverlongTerm`, but got "
                f"{algorithm.overlong.factor:g}: long trajectories would be punished twice. Keep one of the two."
            )
    runner = tools if isinstance(tools, ToolRunner) else ToolRuntime(tools=tuple(tools))
    unknown = [name for name in (*sampling.max_calls, *sampling.ask_once) if name not in runner.tool_names]
    if unknown:
        raise ConfigError(
            f"`max_calls` and `ask_once` must name tools of the run, but got {unknown[0]!r}. Choose from "
            f"{', '.join(runner.tool_names) or 'none'}."
        )
    scored_by = as_reward(reward, scoring.isolation, scoring.deadline_s)
    if (check := getattr(reward, "check_response_limit", None)) is not None:
        check(sampling.max_response_tokens)
    settings = algorithm.rollout_settings(sampling)

    def complete(tokenizer: PreTrainedTokenizerBase) -> RolloutParts:
        return RolloutParts(
            engine=engine,
            tools=runner,
            reward=scored_by,
            chat_format=_chat_format(chat_format, tokenizer, runner),
            allocator=algorithm.allocator,
            branch_policy=algorithm.branch_policy,
            settings=settings,
            scoring=scoring,
        )

    return complete


def experience_builder(
    algorithm: Algorithm, settings: ExperienceSettings, pad_token_id: int, max_response_tokens: int
) -> ExperienceBuilder:
    """Return what makes optimiser steps of trees, as an algorithm asks for.

    Raises:
        ConfigError: If the algorithm punishes a length that no trajectory can have.
    """
    return ExperienceBuilder(
        advantage_estimator=algorithm.advantage_estimator,
        shaping=algorithm.shaping,
        token_mask=algorithm.token_mask,
        kl_cov=algorithm.kl_cov,
        drop_zero_variance_groups=algorithm.drop_zero_variance_groups,
        leaf_weights=algorithm.leaf_weights,
        credit=algorithm.credit,
        normalize_over=algorithm.normalize_over,
        dynamic_sampling=algorithm.dynamic_sampling,
        overlong=None if algorithm.overlong is None else algorithm.overlong.within(max_response_tokens),
        kl_penalty=algorithm.kl_penalty,
        settings=settings,
        pad_token_id=pad_token_id,
    )


def _chat_format(
    given: ChatFormat | ChatFormatFactory | None, tokenizer: PreTrainedTokenizerBase, runner: ToolRunner
) -> ChatFormat:
    if isinstance(given, ChatFormat):
        return given
    specs = getattr(runner, "specs", None)
    if specs is None:
        raise ConfigError(
            f"`chat_format` must be given for a runner that does not list its tools, but got None beside "
            f"{type(runner).__name__}."
        )
    return (given or TagFormat.for_tools)(tokenizer, specs)
