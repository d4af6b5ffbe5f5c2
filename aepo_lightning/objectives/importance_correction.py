"""Importance weights between the policy that sampled the tokens and the one that the trainer starts from.

Engine and trainer never compute the same probabilities to the last bit, and with overlapped rollouts the engine has
older weights. This file corrects for the difference. It knows log-probs only; where they come from is the caller's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.contracts.objective import WeightedMean
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives.kl import kl_estimate
from aepo_lightning.ops.masked import importance_ratio, weighted_mean, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CorrectionOutput:
    """What the objective gets, what its token losses are multiplied by, and what to log."""

    old_logprobs: Float[Tensor, "batch response"]
    """Denominator of the objective's ratio, detached."""
    token_weights: Float[Tensor, "batch response"]
    """Detached factors of the token losses."""
    metrics: Mapping[str, WeightedMean]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceCorrection:
    r"""Truncated or masked importance sampling against the sampler.

    With pi_s the sampler, pi_old the trainer's policy before the first update, and pi the current one, f bounds a
    weight:

        none         no correction: no factor, no bound
        truncated    f(w) = min(w, cap)
        masked       f(w) = w if low <= w <= high, else 0

    **Old log-probs of the trainer** (`recompute`, `auto`): the objective's ratio is r = pi / pi_old, so it does not
    know the sampler. Every token loss is multiplied by f(w), w = pi_old / pi_s, a constant of the update. Where the
    caller has no old log-probs because the update is on-policy, pi_old is the detached current policy.

    **Old log-probs of the sampler** (`sampler`): the objective's ratio is already r = pi / pi_s, so a weight would
    count twice. Only the bound is added: with w the detached value of r, the objective sees r f(w) / w. `truncated` is
    the ratio min(r, cap), with gradient min(r, cap) grad(log pi) before the objective clips; `masked` takes tokens
    beyond the bounds out and leaves the others as they are.

    Weights carry no gradient. Masked tokens still count in the denominator of the loss. With w = 1 everywhere nothing
    changes in any mode.

    References:
        Weights apart from the clipped ratio: decoupled PPO, arXiv:2110.00641; for stale rollouts of language models,
        AReaL, arXiv:2505.24298. Truncation: E. Ionides, Truncated importance sampling (2008); V-trace,
        arXiv:1802.01561. Masking on both sides between engine and trainer: IcePop, arXiv:2510.18855. The geometric
        mean is GSPO's, arXiv:2507.18071, eq. 7; the product is the importance weight of the whole trajectory, which
        alone is unbiased, and leaves any bounds as the response grows: use it with a cap.
    """

    mode: Literal["none", "truncated", "masked"] = "none"
    level: Literal["token", "sequence", "sequence_product"] = "token"
    """`sequence`: every token has the geometric mean of the weights of its trajectory, `sequence_product` their
    product."""
    cap: float = 2.0
    """Largest weight of `truncated`."""
    low: float = 0.5
    """Smallest weight that `masked` keeps."""
    high: float = 2.0
    """Largest weight that `masked` keeps."""
    old_logprobs: Literal["recompute", "sampler", "auto"] = "recompute"
    """Where the old log-probs come from; the same word as for `ExperienceBuilder`."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        choices = {
            "mode": ("none", "truncated", "masked"),
            "level": ("token", "sequence", "sequence_product"),
            "old_logprobs": ("recompute", "sampler", "auto"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"`{name}` must be one of {allowed}, but got {getattr(self, name)!r}.")
        if (self.old_logprobs, self.mode, self.level) == ("sampler", "truncated", "sequence_product"):
            raise ConfigError(
                "`level` must be 'token' or 'sequence' for mode 'truncated' with the sampler's `old_logprobs`: the "
                "bound would divide ratios of tokens by a product of them. But got 'sequence_product'. Use 'recompute'."
            )
        if not self.cap >= 1:
            raise ConfigError(f"`cap` must be at least 1, the weight of equal policies, but got {self.cap}.")
        if not 0 <= self.low <= 1 <= self.high:
            raise ConfigError(f"`low` and `high` must have 1 between them, but got {self.low} and {self.high}.")

    def __call__(
        self,
        logprobs: Float[Tensor, "batch response"],
        old_logprobs: Float[Tensor, "batch response"] | None,
        sampler_logprobs: Float[Tensor, "batch response"],
        response_mask: Bool[Tensor, "batch response"],
    ) -> CorrectionOutput:
        """Return old log-probs and weights of one micro-batch.

        Args:
            logprobs: Of the current policy. Only their value is used.
            old_logprobs: Before the first update, or None where that is the current policy.
            sampler_logprobs: As the engine reported them.
            response_mask: True where the token is trained.

        Returns:
            What goes into the objective and its loss. Metrics over response tokens, from the trainer's log-probs, old
            where it has scored them and current otherwise: `sampler_logprob_gap` (mean absolute difference to the
            sampler's), `mismatch_kl` (k3 estimate of KL(sampler || trainer), both in nats), `importance_weight` (mean
            of w, unbounded), `importance_outside_fraction` (beyond the bounds of the mode).
        """
        sampler = zero_outside(sampler_logprobs.detach(), response_mask)
        is_scored = old_logprobs is not None and self.old_logprobs != "sampler"
        trainer = zero_outside((old_logprobs if is_scored else logprobs).detach(), response_mask)  # type: ignore[union-attr]
        log_weights = self._log_weights(trainer - sampler, response_mask)
        weights = importance_ratio(log_weights)
        outside = self._outside(weights)
        return CorrectionOutput(
            old_logprobs=self._denominator(trainer, sampler, log_weights),
            token_weights=self._factors(weights, outside),
            metrics={
                "sampler_logprob_gap": weighted_mean((trainer - sampler).abs(), response_mask),
                "mismatch_kl": weighted_mean(kl_estimate(sampler, trainer, "k3"), response_mask),
                "importance_weight": weighted_mean(weights, response_mask),
                "importance_outside_fraction": weighted_mean(outside.to(weights.dtype), response_mask),
            },
        )

    def _log_weights(
        self, log_ratio: Float[Tensor, "batch response"], mask: Bool[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        if self.level == "token":
            return log_ratio
        of_sequence = log_ratio.sum(-1, keepdim=True)
        if self.level == "sequence":
            of_sequence = of_sequence / mask.sum(-1, keepdim=True).clamp(min=1)
        return of_sequence.expand_as(log_ratio)

    def _outside(self, weights: Float[Tensor, "batch response"]) -> Bool[Tensor, "batch response"]:
        if self.mode == "none":
            return torch.zeros_like(weights, dtype=torch.bool)
        if self.mode == "truncated":
            return weights > self.cap
        return (weights < self.low) | (weights > self.high)

    def _denominator(
        self,
        trainer: Float[Tensor, "batch response"],
        sampler: Float[Tensor, "batch response"],
        log_weights: Float[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response"]:
        if self.old_logprobs != "sampler":
            return trainer
        if self.mode != "truncated":
            return sampler
        return sampler + (log_weights - math.log(self.cap)).clamp(min=0)

    def _factors(
        self, weights: Float[Tensor, "batch response"], outside: Bool[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response"]:
        ones = torch.ones_like(weights)
        if self.mode == "none":
            return ones
        if self.mode == "masked":
            return (ones if self.old_logprobs == "sampler" else weights).masked_fill(outside, 0.0)
        return ones if self.old_logprobs == "sampler" else weights.clamp(max=self.cap)
