"""What a tool says about itself: name, schema, limits, and what it remembers between calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ToolState(StrEnum):
    """What a tool remembers between the calls of a chain, hence what a branch needs."""

    STATELESS = "stateless"
    """Nothing: every call stands alone."""
    REPLAYABLE = "replayable"
    """A state that the same calls build again: a branch replays its trunk's."""
    FORKABLE = "forkable"
    """A state that can be copied: a branch gets a copy of its trunk's."""
    UNFORKABLE = "unforkable"
    """A state that can be neither: chains that have called the tool do not branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed call is tried again, within its deadline."""

    max_attempts: int = 1
    """Attempts in all; 1 never tries again."""
    backoff_s: float = 0.5
    """Wait before the second attempt; it doubles from attempt to attempt, with jitter. A server that says how long to
    wait is believed."""
    errors: Sequence[str] = ("ToolUnavailableError",)
    """Names of the exceptions, or of their bases, that are worth another attempt."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.max_attempts < 1 or not self.backoff_s >= 0:
            raise ValueError(
                "`max_attempts` must be at least 1 and `backoff_s` not negative, but got "
                f"{self.max_attempts} and {self.backoff_s}."
            )
        if isinstance(self.errors, str):
            raise ValueError(f"`errors` must be a list of names, but got {self.errors!r}. Write [{self.errors}].")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """What a tool may cost. None leaves it to the runtime's own setting."""

    deadline_s: float | None = None
    """Seconds for one call, attempts and waits between them included. They start when the call gets its slot."""
    max_concurrent_calls: int | None = None
    max_queued_calls: int | None = None
    """Calls that may wait for a slot; one more is answered at once that the tool is busy."""
    calls_per_second: float | None = None
    """Starts of calls. None does not count them."""
    max_result_chars: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker_failures: int = 0
    """So many failures of the infrastructure within `breaker_window_s`, if they are at least `breaker_share` of its
    calls, open the circuit: further calls are refused at once for a while. 0 never opens it."""
    breaker_share: float = 0.5
    breaker_window_s: float = 60.0
    breaker_reset_s: float = 30.0
    """How long an open circuit refuses; then one call is let through to see."""
    is_single_flight: bool = False
    """Chains that ask the same thing at the same time share one call."""
    cache_ttl_s: float | None = 0.0
    """How long an answer stays in the runtime's cache: 0 is not at all, None for ever."""
    cache_empty_ttl_s: float | None = 0.0
    """The same for answers that are empty."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if not 0 < self.breaker_share <= 1:
            raise ValueError(f"`breaker_share` must be in (0, 1], but got {self.breaker_share}.")
        for name in ("deadline_s", "calls_per_second", "breaker_reset_s", "breaker_window_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive and finite, but got {value}.")
        for name in ("max_concurrent_calls", "max_result_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {value}.")
        for name in ("max_queued_calls", "breaker_failures", "cache_ttl_s", "cache_empty_ttl_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` must not be negative, but got {value}.")


def _text_schema() -> dict[str, Any]:
    return {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What there is to know about a tool before it is called."""

    name: str
    """Lower-case letters, digits and underscores. In the tag format it is the tag."""
    description: str = ""
    """What the policy reads about the tool, where its prompt lists tools."""
    parameters: Mapping[str, Any] = field(default_factory=_text_schema)
    """JSON schema of the arguments, an object."""
    text_parameter: str = "text"
    """The parameter that gets the text between tags. Empty for a tool without parameters."""
    empty_answer: str = ""
    """What the policy reads where the tool answers nothing. Empty names the tool."""
    state: ToolState = ToolState.STATELESS
    is_question_bound: bool = False
    """Whether the answer depends on the question that the chain works on, so that other questions must not share it."""
    version: str = "1"
    """Part of the cache key: a tool that answers in another way must have another one."""
    limits: ToolLimits = field(default_factory=ToolLimits)
    provider: str = ""
    """What stands behind the tool, such as a server: tools that name the same one share its circuit breaker, which the
    limits of the first of them set. Empty is the tool alone."""
