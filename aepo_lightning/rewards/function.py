"""Plain functions as rewards."""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from aepo_lightning.contracts.reward import Reward, RewardInput, RewardOutput
from aepo_lightning.errors import ConfigError, RewardError

Scored: TypeAlias = RewardOutput | float
RewardFunction: TypeAlias = Callable[[RewardInput], Scored | Awaitable[Scored]]


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A reward from a function of the finished trajectory, plain or `async`.

    The function returns a `RewardOutput`, or any finite number: the reward. A trajectory then counts as correct, for
    pass@k, if its reward is at least 1. A plain function runs in a thread, so that it holds up no other trajectory.
    """

    function: RewardFunction

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth.

        Raises:
            RewardError: If the function returns neither a finite number nor a `RewardOutput`.
        """
        if inspect.iscoroutinefunction(self.function):
            value: Any = await self.function(sample)
        else:
            value = await asyncio.to_thread(self.function, sample)
        return value if isinstance(value, RewardOutput) else self._output(value, sample)

    def _output(self, value: Any, sample: RewardInput) -> RewardOutput:
        try:
            reward = float(value)
        except (TypeError, ValueError):
            reward = math.nan
        if not math.isfinite(reward):
            raise RewardError(
                f"The reward function `{_name(self.function)}` must return a finite number or a `RewardOutput`, "
                f"but got {value!r} for question {sample.question.question_id!r}."
            )
        return RewardOutput(reward=reward, is_correct=reward >= 1.0, is_well_formed=True)


def as_reward(reward: Reward | RewardFunction) -> Reward:
    """Return a reward: what is one already as it is, a plain function wrapped.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(reward, type) or not callable(reward):
        raise ConfigError(f"`reward` must be a function or a `Reward`, but got {reward!r}. Pass an instance.")
    is_function = inspect.isroutine(reward) or not inspect.iscoroutinefunction(type(reward).__call__)
    return FunctionReward(reward) if is_function else reward  # type: ignore[return-value]  # told apart above


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
