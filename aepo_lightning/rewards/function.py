"""Plain functions as rewards."""

import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, overload

from aepo_lightning.contracts.blame import part_name
from aepo_lightning.contracts.reward import (
    TERM_NAME,
    LimitedReward,
    Reward,
    RewardInput,
    RewardLimits,
    RewardOutput,
    checked_output,
)
from aepo_lightning.errors import ConfigError
from aepo_lightning.event_loop import call_function, is_coroutine_function
from aepo_lightning.rewards.process import ProcessReward

Isolation = Literal["thread", "process"]
Scored: TypeAlias = RewardOutput | float
RewardFunction: TypeAlias = Callable[[RewardInput], Scored | Awaitable[Scored]]


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A reward from a function of the finished trajectory, plain or `async`.

    The function returns a `RewardOutput`, or a number of any kind: the reward. A trajectory then counts as correct, for
    pass@k, if its reward is at least 1. A plain function runs in a thread, so that it holds up no other trajectory.
    """

    function: RewardFunction

    async def __call__(self, sample: RewardInput) -> RewardOutput:
        """Return what the trajectory is worth.

        Raises:
            RewardError: If the function returns neither a finite number nor a `RewardOutput`.
        """
        answer = await call_function(self.function, sample, "aepo-reward")
        return checked_output(answer, part_name(self.function), sample.question.question_id)


def as_reward(reward: Reward | RewardFunction, isolation: Isolation = "thread", deadline_s: float = math.inf) -> Reward:
    """Return a reward: what is one already as it is, a plain function wrapped.

    Args:
        reward: What scores.
        isolation: Where a plain function runs: in a thread, or in another process.
        deadline_s: Of a process, for one trajectory.

    Raises:
        ConfigError: If it is neither, or cannot be sent to the process that it should run in.
    """
    if isinstance(reward, type) or not callable(reward):
        raise ConfigError(f"`reward` must be a function or a `Reward`, but got {reward!r}. Pass an instance.")
    if isinstance(reward, LimitedReward):
        return reward.limited(RewardLimits(deadline_s=deadline_s, isolation=isolation))
    if isolation == "process" and not is_coroutine_function(reward) and not getattr(reward, "is_immediate", False):
        return ProcessReward(reward, deadline_s)
    is_function = inspect.isroutine(reward) or not is_coroutine_function(reward)
    return FunctionReward(reward) if is_function else reward  # type: ignore[return-value]  # told apart above


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@overload
def reward(function: Decorated) -> Decorated: ...


@overload
def reward(*, name: str) -> Callable[[Decorated], Decorated]: ...


def reward(
    function: Decorated | None = None, *, name: str | None = None
) -> Decorated | Callable[[Decorated], Decorated]:
    """Give a function of a finished trajectory the name that it has as a term of a reward.

    `@reward` takes the name of the function, `@reward(name="brevity")` another one. The function stays what it is.

    Args:
        function: Of a `RewardInput`, plain or `async`, maybe with settings that have defaults. It returns a number, a
            `RewardOutput` or a `TermOutput`.
        name: Letters, digits and underscores.

    Raises:
        ConfigError: If it is no function of a trajectory, or the name is none.
    """

    def decorate(function: Decorated) -> Decorated:
        _check_function(function)
        found = function.__name__ if name is None else name
        if not TERM_NAME.fullmatch(found):
            raise ConfigError(f"`name` must be made of letters, digits and underscores, but got {found!r:.80}.")
        function.reward_name = found  # type: ignore[attr-defined]
        return function

    return decorate if function is None else decorate(function)


def _check_function(function: object) -> None:
    if not inspect.isfunction(function):
        raise ConfigError(f"`@reward` must stand above a function, but got {function!r:.80}.")
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise ConfigError(
            f"`@reward` must stand above a function of a trajectory, but `{part_name(function)}` takes none. Give it "
            "a first parameter, the `RewardInput`."
        )
