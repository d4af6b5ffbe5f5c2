"""How trees are grown: the numbers and switches that belong to no single part."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args, get_type_hints

from aepo_lightning.errors import ConfigError
from aepo_lightning.rollout.turn_entropy import TurnEntropy


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn and how far a trajectory may go: what is the user's choice under every algorithm.

    Raises:
        ConfigError: If a number is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    max_response_tokens: int = 4096
    """Tokens after the prompt, tool results included."""
    max_tool_calls: int = 6
    on_call_limit: Literal["stop", "tell"] = "stop"
    """`stop` ends the trajectory at one call too many; `tell` answers that the limit is reached, as evaluation does."""

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
        choices = get_args(hint)
        if choices and getattr(settings, name) not in choices:
            raise ConfigError(f"`{name}` must be one of {choices}, but got {getattr(settings, name)!r}.")
