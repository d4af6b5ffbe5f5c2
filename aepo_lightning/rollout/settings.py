"""How trees are grown: the numbers and switches that belong to no single part."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout.turn_entropy import TurnEntropy


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn and how far a trajectory may go: what is the user's choice under every algorithm.

    Raises:
        ConfigError: If a number is out of range.
    """

    temperature: float = 1.0
    """Of sampling. Log-probs and entropies are those at it; 0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens with this probability that is sampled from. 1 keeps the whole vocabulary."""
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    repetition_penalty: float = 1.0
    """Scores of tokens that prompt or response have already are divided by it where they are positive, else multiplied.
    1 changes nothing. Tokens are drawn with it; log-probs and entropies stay those of the policy."""
    stop: Sequence[str] = ()
    """Strings that end the trajectory, beside those of the chat format, which end a turn."""
    max_response_tokens: int = 4096
    """Tokens after the prompt, tool results included."""
    max_turn_tokens: int | None = None
    """Tokens that the policy writes in one turn. A turn that needs more ends the trajectory."""
    timeout_s: float | None = None
    """Seconds for a whole trajectory: generation, tool calls, and the waits for both. None is no limit. When they are
    over it ends with the turns and results that it has; the turn or the calls that ran are cancelled. For
    evaluation and for algorithms without branches and probe: what a chain decided in a turn that was cut off is not on
    record."""
    max_tool_calls: int = 6
    on_call_limit: Literal["stop", "tell"] = "stop"
    """`stop` ends the trajectory at a turn of which every call is one too many; `tell` answers that the limit is
    reached, as evaluation does."""
    max_calls: Mapping[str, int | None] = field(default_factory=dict)
    """Calls that were run, for each tool that has a limit of its own: `{python: 5, search: 10}`; None is no
    limit."""
    max_calls_message: str = "The limit of {limit} calls of {tool} is reached. Go on without it."
    """What one call of a tool too many is told."""
    ask_once: Sequence[str] = ()
    """Tools that are not called again with what the chain has had an answer to."""
    ask_once_message: str = "This call of {tool} was made before. Read its result above."
    """What such a call is told."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        if self.max_response_tokens < 1:
            raise ConfigError(f"`max_response_tokens` must be at least 1, but got {self.max_response_tokens}.")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"`top_p` must be in (0, 1] and `top_k` 0 (off) or positive, but got {self.top_p} and {self.top_k}."
            )
        if self.max_tool_calls < 0:
            raise ConfigError(f"`max_tool_calls` must not be negative, but got {self.max_tool_calls}.")
        if not self.temperature >= 0:
            raise ConfigError(f"`temperature` must be 0 (greedy) or positive, but got {self.temperature}.")
        _refuse_unknown_words(self)
        _check_limits(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings(SamplingSettings):
    """Settings of the sampler. Switches that reproduce the released AEPO code name the paper's way as default.

    Raises:
        ConfigError: If a number is out of range.
    """

    budget: int = 16
    """k: trajectories per question, always exactly this many."""
    turn_entropy: TurnEntropy = field(default_factory=TurnEntropy)
    """How the entropies of a turn's first tokens become the one number that decides."""
    top_up: Literal["parallel", "sequential"] = "parallel"
    """Unused branch budget becomes fresh chains all at once, or (released code) one after another."""
    keep_probe: bool = True
    """Keep the pre-monitoring trajectory as one of the m global samples, or (released code) throw it away."""
    branch_signal: Literal["after_tool", "before_tool", "prefix"] = "after_tool"
    """Measure the turn after the tool result, or (released code) the turn before it; or, `prefix`, the distribution
    right after the result, before a token is drawn from it. Decisions are then taken in rounds (`rollout/rounds.py`),
    so that nothing of a chain's own future, timing included, enters them. A branch starts when its round is complete:
    when every other chain has come to the same turn, or ended."""
    penalty_scope: Literal["chain", "question"] = "chain"
    """Count consecutive branches per chain, or (released code) per question."""
    branch_baseline: Literal["root", "own"] = "root"
    """A branch inherits the initial entropy of its trajectory, or (released code) takes its own first turn."""
    on_malformed_call: Literal["tell", "stop"] = "tell"
    """Answer a call that cannot be read with what is wrong, or (released code) end the trajectory there."""

    @property
    def measured_entropy(self) -> TurnEntropy:
        """What is measured when a turn starts: `turn_entropy`, under `branch_signal=prefix` of its first token alone.

        The entropy that an engine reports with a turn's first token is that of the distribution it was drawn from, so
        it does not depend on the token.
        """
        return replace(self.turn_entropy, num_tokens=1) if self.branch_signal == "prefix" else self.turn_entropy

    @classmethod
    def of(cls, sampling: SamplingSettings, **others: Any) -> "RolloutSettings":
        """Return the user's settings together with those of an algorithm."""
        return cls(**asdict(sampling), **others)

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        SamplingSettings.__post_init__(self)
        if self.budget < 1:
            raise ConfigError(f"`budget` must be at least 1, but got {self.budget}.")
        if self.branch_signal == "prefix" and self.turn_entropy.estimator != "exact":
            raise ConfigError(
                f"`turn_entropy.estimator` must be 'exact' for `branch_signal=prefix`, but got "
                f"{self.turn_entropy.estimator!r}. The estimate knows the sampled token."
            )
        if self.temperature == 0 and self.budget > 1:
            raise ConfigError(
                f"`temperature` must be positive for {self.budget} trajectories, but got {self.temperature}. "
                "Greedy decoding would make every trajectory of a group the same; it needs a budget of 1."
            )


def _refuse_unknown_words(settings: SamplingSettings) -> None:
    for name, hint in get_type_hints(type(settings)).items():
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        if choices and getattr(settings, name) not in choices:
            raise ConfigError(f"`{name}` must be one of {choices}, but got {getattr(settings, name)!r}.")


def _check_limits(settings: SamplingSettings) -> None:
    """Refuse limits of turns, of time and of single tools that have no meaning."""
    if not 0 < settings.repetition_penalty < math.inf:
        raise ConfigError(f"`repetition_penalty` must be positive, but got {settings.repetition_penalty}. 1 is off.")
    if settings.max_turn_tokens is not None and settings.max_turn_tokens < 1:
        raise ConfigError(f"`max_turn_tokens` must be at least 1 or null, but got {settings.max_turn_tokens}.")
    if settings.timeout_s is not None and not settings.timeout_s > 0:
        raise ConfigError(f"`timeout_s` must be positive or null, but got {settings.timeout_s}. Give seconds.")
    for tool, limit in settings.max_calls.items():
        if limit is not None and limit < 0:
            raise ConfigError(f"`max_calls` must not be negative, but got {limit} for {tool!r}. 0 allows none.")
    for name in ("stop", "ask_once"):
        if isinstance(getattr(settings, name), str) or not all(getattr(settings, name)):
            raise ConfigError(f"`{name}` must be a list of non-empty texts, but got {getattr(settings, name)!r}.")
    _check_message("max_calls_message", settings.max_calls_message, {"tool": "search", "limit": 0})
    _check_message("ask_once_message", settings.ask_once_message, {"tool": "search"})


def _check_message(name: str, message: str, values: Mapping[str, object]) -> None:
    try:
        told = message.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        named = " or ".join(f"{{{value}}}" for value in values)
        raise ConfigError(f"`{name}` must name {named} alone in braces, but got {message!r}: {error!r}.") from error
    if not told.strip():
        raise ConfigError(f"`{name}` must not be empty, but got {message!r}. The policy reads it.")
