"""Entropies in nats: of one token, of the first tokens of a turn, and their estimate from top-k log-probs.

The one definition is the Shannon entropy of the sampling distribution (temperature applied) over the whole vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

from aepo_lightning.contracts.generation import Generation
from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.entropy import top_k_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEntropy:
    """One number for how uncertain the policy was when a turn began.

    Calling it aggregates the entropies of the first tokens of a generation. The released AEPO code is
    `aggregate="sum", normalizer="log_vocab", estimator="top_k"`; its sum makes short turns look certain, and its
    top-10 estimate is too low just where the entropy is high. The defaults here are exact, and independent of length.

    References:
        AEPO, arXiv:2510.14545. ARPO, arXiv:2507.19849, eq. 4, divides a sum over tokens by the vocabulary size
        (`aggregate="sum", normalizer="vocab"`).
    """

    num_tokens: int = 20
    """How many tokens from the start of the turn count."""
    aggregate: Literal["mean", "sum"] = "mean"
    """`sum` is the released code's: it makes short turns look certain."""
    normalizer: Literal["log_vocab", "vocab", "none"] = "log_vocab"
    """What the aggregate is divided by: ln V (then a mean is in [0, 1]), V, or 1 (then the unit is nats)."""
    estimator: Literal["exact", "top_k"] = "exact"
    """Over the whole vocabulary, or (released code) over the largest log-probs, which is a lower bound."""
    num_top_logprobs: int = 10
    """k of the top-k estimator."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if self.num_tokens < 1:
            raise ConfigError(f"`num_tokens` must be at least 1, but got {self.num_tokens}.")
        if self.aggregate not in ("mean", "sum"):
            raise ConfigError(f"`aggregate` must be 'mean' or 'sum', but got {self.aggregate!r}.")
        if self.normalizer not in ("log_vocab", "vocab", "none"):
            raise ConfigError(f"`normalizer` must be 'log_vocab', 'vocab' or 'none', but got {self.normalizer!r}.")
        if self.estimator not in ("exact", "top_k"):
            raise ConfigError(f"`estimator` must be 'exact' or 'top_k', but got {self.estimator!r}.")
        if self.num_top_logprobs < 1:
            raise ConfigError(f"`num_top_logprobs` must be at least 1, but got {self.num_top_logprobs}.")

    @property
    def num_top_logprobs_needed(self) -> int:
        """What `SamplingParams.num_top_logprobs` must be for this measure: 0 for the exact entropy."""
        return self.num_top_logprobs if self.estimator == "top_k" else 0

    def __call__(self, generation: Generation, vocab_size: int) -> float:
        """Measure one generated turn.

        Args:
            generation: What the engine sampled for the turn.
            vocab_size: Number of tokens in the vocabulary, V.

        Returns:
            The aggregate; 0.0 for a turn without tokens.

        Raises:
            ValueError: If `vocab_size` is below 2, or the generation lacks what the estimator reads.
        """
        if vocab_size < 2:
            raise ValueError(f"`vocab_size` must be at least 2, but got {vocab_size}.")
        entropies = self._token_entropies(generation)
        if not entropies:
            return 0.0
        total = math.fsum(entropies)
        aggregate = total / len(entropies) if self.aggregate == "mean" else total
        return aggregate / self._divisor(vocab_size)

    def _token_entropies(self, generation: Generation) -> list[float]:
        count = min(self.num_tokens, len(generation.token_ids))
        available = generation.entropies if self.estimator == "exact" else generation.top_logprobs
        if len(available) < count:
            name = "entropies" if self.estimator == "exact" else "top_logprobs"
            raise ValueError(
                f"`generation.{name}` must have one entry per token, but got {len(available)} for "
                f"{len(generation.token_ids)} tokens. Sample with `num_top_logprobs={self.num_top_logprobs_needed}`."
            )
        if self.estimator == "exact":
            return generation.entropies[:count]
        return [top_k_entropy(logprobs) for logprobs in generation.top_logprobs[:count]]

    def _divisor(self, vocab_size: int) -> float:
        return {"log_vocab": math.log(vocab_size), "vocab": float(vocab_size), "none": 1.0}[self.normalizer]
