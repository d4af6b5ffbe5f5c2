"""What `StabilityWatch` is told of an iteration, and every threshold that it judges by."""

import math
from dataclasses import dataclass, fields

from aepo_lightning.errors import ConfigError

_FEWEST_POINTS = 3
"""Through which a line can be laid, and its error told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """An iteration in numbers; NaN where a number is not known."""

    entropy: float = math.nan
    """Mean entropy of generated tokens, in nats."""
    reward: float = math.nan
    """Mean reward of trajectories."""
    zero_variance: float = math.nan
    """Share of groups whose rewards are all equal."""
    clip_fraction: float = math.nan
    """Share of tokens beyond a bound, mean over the optimiser steps."""
    kl: float = math.nan
    """Estimate of KL(old, new) in nats per token, mean over the optimiser steps."""
    ratio_tail: float = math.nan
    """99th percentile of the importance ratio, largest of the optimiser steps."""
    repetition: float = math.nan
    """Share of generated four-grams that stood in the same turn before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is too much. The baseline is the median entropy of the run's own first iterations."""

    num_baseline: int = 3
    """Iterations that make the baseline. Before, only what jumps away from them is judged relative to them."""
    patience: int = 2
    """Iterations in a row beyond a limit until there is an alarm."""
    window: int = 5
    """Iterations over which slope and variance are measured, at least 3."""
    minimum_nats: float = 0.005
    """Entropy below is a collapse, unless the task is solved."""
    maximum_nats: float = math.inf
    """Entropy above is an eruption."""
    relative_low: float = 0.3
    """Times the baseline: entropy below is a collapse, unless the task is solved or rewards still rise."""
    relative_high: float = 1.5
    """Times the baseline: entropy above is an eruption."""
    sudden: float = 1.4
    """Factor beyond the two bounds before, at which there is an alarm without patience."""
    max_drift: float = 0.5
    """Rise or fall of the fitted line over the window, as a multiple of the baseline."""
    min_significance: float = 4.0
    """Standard errors that the slope of that line must be away from 0 to count."""
    max_spread: float = 0.3
    """Standard deviation over the window around that line, as a multiple of the baseline."""
    max_kl: float = 1.0
    """KL(old, new) of the update, in nats per token."""
    max_clip_fraction: float = 0.3
    """Share of tokens beyond a bound."""
    max_ratio_tail: float = 20.0
    """99th percentile of the importance ratio."""
    max_repetition: float = 0.5
    """Share of repeated four-grams, of what was not repeated in the first iterations."""
    max_zero_variance: float = 0.9
    """Share of groups whose rewards are all equal, unless the task is solved."""
    until_reward: float | None = 0.9
    """Mean reward from which on the task counts as solved. None: never."""

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ConfigError: If one has no meaning.
        """
        for name, least in (("num_baseline", 1), ("patience", 1), ("window", _FEWEST_POINTS)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"`{name}` must be at least {least}, but got {getattr(self, name)}. Give a number of iterations."
                )
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "until_reward" and not value > 0:
                raise ConfigError(
                    f"`{each.name}` must be positive, but got {value}. Use .inf where nothing is too much."
                )
        if self.until_reward is not None and not math.isfinite(self.until_reward):
            raise ConfigError(
                f"`until_reward` must be None or finite, but got {self.until_reward}. Use None for never."
            )
        if not (self.relative_low < 1 < self.relative_high and self.sudden >= 1):
            raise ConfigError(
                "`relative_low`, `relative_high` and `sudden` must satisfy low < 1 < high and sudden >= 1, but got "
                f"{self.relative_low}, {self.relative_high} and {self.sudden}. They are factors."
            )
        if not self.minimum_nats < self.maximum_nats:
            raise ConfigError(
                f"`minimum_nats` must be below `maximum_nats`, but got {self.minimum_nats} and {self.maximum_nats}. "
                "Raise the latter."
            )
