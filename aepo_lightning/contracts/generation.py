"""How a generation is sampled, what an engine gives back, and why generations and trajectories end."""

from dataclasses import dataclass, field
from enum import StrEnum

from aepo_lightning.errors import ConfigError


class FinishReason(StrEnum):
    """Why one generation ended."""

    EOS = "eos"
    STOP = "stop"
    """A stop string was completed."""
    LENGTH = "length"
    """`max_tokens` were generated or the context is full."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    EOS = "eos"
    """The policy ended its message, or wrote a string that ends trajectories."""
    LENGTH = "length"
    """The response budget, that of a turn, or the context of the model is used up."""
    TIMEOUT = "timeout"
    """The time for a whole trajectory is used up."""
    CALL_LIMIT = "call_limit"
    """The policy asked for one tool call more than allowed."""
    MALFORMED_CALL = "malformed_call"
    """A tool call could not be read, and the algorithm ends a trajectory there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsStamp:
    """Which weights an engine generates with."""

    version: int
    """Optimiser steps that they have seen."""
    digest: str = ""
    """Differs for weights that give other log-probs. Without one, no earlier work is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one generation is sampled."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy; log-probs and entropies are then those at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    repetition_penalty: float = 1.0
    """What scores of tokens that stand in prompt or response are divided by where they are positive, else multiplied
    by, before a token is drawn. Log-probs and entropies are those without it."""
    stop: tuple[str, ...] = ()
    """Strings that end the generation. The token that completes one is kept whole."""
    seed: int = 0
    """The random number behind a token depends on the seed and the absolute position of the token only, never on
    what else is in the batch."""
    num_top_logprobs: int = 0
    """How many of the largest log-probs to return with each token."""
    num_probe_tokens: int = 0
    """After how many tokens the probe callback of `Engine.generate` is due. 0 is never."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if self.max_tokens < 1:
            raise ConfigError(f"`max_tokens` must be at least 1, but got {self.max_tokens}.")
        if self.temperature < 0:
            raise ConfigError(f"`temperature` must be 0 (greedy) or positive, but got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"`top_p` must be in (0, 1], but got {self.top_p}.")
        if self.top_k < 0:
            raise ConfigError(f"`top_k` must be 0 (off) or positive, but got {self.top_k}.")
        if not self.repetition_penalty > 0:
            raise ConfigError(f"`repetition_penalty` must be positive, but got {self.repetition_penalty}. 1 is off.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine sampled for one request. The three lists have one entry per token."""

    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each sampled token at the sampling temperature, before top-p and top-k."""
    entropies: list[float]
    """Shannon entropy in nats over the whole vocabulary at the sampling temperature."""
    finish_reason: FinishReason
    top_logprobs: list[list[float]] = field(default_factory=list)
    """The largest log-probs and, if it is not among them, the sampled token's. Empty unless asked for."""
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""
