"""How far the policy is from a reference, estimated at the sampled tokens."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.errors import ConfigError
from aepo_lightning.ops.masked import MAX_LOG_RATIO, zero_outside

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    logprobs: Float[Tensor, "batch response"],
    ref_logprobs: Float[Tensor, "batch response"],
    estimator: KLEstimator,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Float[Tensor, "batch response"]:
    """Estimate KL(policy || reference) at tokens that the policy sampled.

    With d = ref_logprobs - logprobs: k1 = -d (unbiased, signed), k2 = d^2 / 2 (biased, never negative),
    k3 = e^d - d - 1 (unbiased, never negative). As a loss they differ from what they estimate: the gradient of k1 is
    zero on average, that of k2 is the gradient of the KL on average, that of k3 is the gradient of KL(reference ||
    policy) on average.

    Args:
        logprobs: Of the policy that sampled the tokens, in nats.
        ref_logprobs: Of the other policy, in nats.
        estimator: Which of the three.
        max_log_ratio: For k3, d is clamped to plus or minus this, beyond which the gradient is 0.

    Returns:
        One estimate per token, in nats.

    Raises:
        ValueError: If `estimator` is unknown.

    References:
        J. Schulman, Approximating KL Divergence (2020). GRPO uses k3 (arXiv:2402.03300, eq. 4).
    """
    difference = ref_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        difference = difference.clamp(-max_log_ratio, max_log_ratio)
        return difference.expm1() - difference
    raise ValueError(f"`estimator` must be 'k1', 'k2' or 'k3', but got {estimator!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KLPenalty:
    """A penalty on the distance from the reference policy, in the loss or in the reward.

    References:
        AEPO and ARPO train with coefficient 0 (arXiv:2507.19849, appendix C.2). verl clamps the log-ratio of k3 to
        +-20 and its estimate to +-10: `max_estimate=10`. In the reward: REINFORCE++, arXiv:2501.03262, eqs. 8 and 9,
        with k1.
    """

    coefficient: float = 0.0
    """0 turns the penalty off; no reference log-probs are read then."""
    estimator: KLEstimator = "k3"
    """k1 and k3 are unbiased, k2 and k3 never negative; as losses they differ (`kl_estimate`)."""
    place: Literal["loss", "reward"] = "loss"
    """`loss`: added to the token losses, with its gradient. `reward`: what a token and those after it in its trajectory
    are penalised for is subtracted from its advantage, under the policy before the update and without a gradient."""
    max_log_ratio: float = MAX_LOG_RATIO
    """For k3, the log-ratio of a token is clamped to plus or minus this, in nats; beyond it there is no gradient."""
    max_estimate: float | None = None
    """The estimate of a token is clamped to plus or minus this, in nats; beyond it there is no gradient. None: not."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not self.coefficient >= 0:
            raise ConfigError(f"`coefficient` must be 0 (off) or positive, but got {self.coefficient}.")
        if self.estimator not in ("k1", "k2", "k3"):
            raise ConfigError(f"`estimator` must be 'k1', 'k2' or 'k3', but got {self.estimator!r}.")
        if self.place not in ("loss", "reward"):
            raise ConfigError(f"`place` must be 'loss' or 'reward', but got {self.place!r}.")
        # e^80 is close to the largest number of float32.
        if not 0 < self.max_log_ratio <= 80:
            raise ConfigError(f"`max_log_ratio` must be positive and at most 80, but got {self.max_log_ratio}.")
        if self.max_estimate is not None and not self.max_estimate > 0:
            raise ConfigError(f"`max_estimate` must be None (no bound) or positive, but got {self.max_estimate}.")

    def __call__(
        self,
        logprobs: Float[Tensor, "batch response"],
        ref_logprobs: Float[Tensor, "batch response"],
        response_mask: Bool[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response"]:
        """Return coefficient * KL estimate for each token.

        Args:
            logprobs: Of the policy that is penalised, in nats.
            ref_logprobs: Of the reference policy, in nats. No gradient flows into it.
            response_mask: True where the token is trained.

        Returns:
            Losses, exactly 0 outside the mask in value and gradient.
        """
        if self.coefficient == 0:
            return torch.zeros_like(logprobs)
        policy = zero_outside(logprobs, response_mask)
        reference = zero_outside(ref_logprobs.detach(), response_mask)
        estimate = kl_estimate(policy, reference, self.estimator, self.max_log_ratio)
        if self.max_estimate is not None:
            estimate = estimate.clamp(-self.max_estimate, self.max_estimate)
        return self.coefficient * estimate
