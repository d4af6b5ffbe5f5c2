"""How long a judge may take, how much it may be given, and what it costs."""

import math
from dataclasses import dataclass, fields

from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeLimits:
    """Bounds of the requests to a judge.

    Raises:
        ConfigError: If a value has no meaning.
    """

    max_concurrent_calls: int = 16
    """Claims that are before the judge at the same time, for each event loop."""
    deadline_s: float = 300.0
    """For one claim: all attempts and the pauses between them, not the wait for a free place."""
    timeout_s: float = 120.0
    """For one attempt."""
    max_attempts: int = 4
    backoff_s: float = 1.0
    """Before the second attempt, doubled for each further one, with jitter."""
    max_retry_after_s: float = 60.0
    """A server that asks for a longer pause is not asked again."""
    breaker_failures: int = 10
    """After so many claims in a row at whose last attempt the server was not there, failed or kept silent, further
    claims are not sent for `breaker_reset_s`; then one is, to see. 0 sends all of them."""
    breaker_reset_s: float = 30.0
    max_tokens: int = 2048
    """Of a reply. Reasons, and the thoughts of a model that reasons, count."""
    max_prompt_chars: int = 64_000
    """Longer prompts are not sent; the judge abstains."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        for name in ("max_concurrent_calls", "max_attempts", "max_tokens", "max_prompt_chars"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` of a judge must be at least 1, but got {getattr(self, name)}.")
        if self.breaker_failures < 0:
            raise ConfigError(
                f"`breaker_failures` of a judge must be at least 0, but got {self.breaker_failures}. Use 0 for never."
            )
        for name in ("deadline_s", "timeout_s", "breaker_reset_s"):
            if not (0 < getattr(self, name) < math.inf):
                raise ConfigError(
                    f"`{name}` of a judge must be positive and finite, but got {getattr(self, name)}. Give seconds."
                )
        for name in ("backoff_s", "max_retry_after_s"):
            if not (0 <= getattr(self, name) < math.inf):
                raise ConfigError(
                    f"`{name}` of a judge must be at least 0 and finite, but got {getattr(self, name)}. Give seconds."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrices:
    """What a million tokens costs, in any currency.

    Raises:
        ConfigError: If a price is negative or not finite.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        for each in fields(self):
            price = getattr(self, each.name)
            if not (math.isfinite(price) and price >= 0):
                raise ConfigError(
                    f"`{each.name}` of a judge's prices must be at least 0 and finite, but got {price}. Give the price "
                    "of a million tokens."
                )
