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

    Returns:
        One estimate per token, in nats. For k3, d is clamped to +-20, beyond which the gradient is 0.

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
        difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return difference.expm1() - difference
    raise ValueError(f"`estimator` must be 'k1', 'k2' or 'k3', but got {estimator!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KLPenalty:
    """A penalty on the distance from the reference policy, to be added to the token losses of an objective.

    References:
        AEPO and ARPO train with coefficient 0 (arXiv:2507.19849, appendix C.2).
    """

    coefficient: float = 0.0
    """0 turns the penalty off; no reference log-probs are read then."""
    estimator: KLEstimator = "k3"

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not self.coefficient >= 0:
            raise ConfigError(f"`coefficient` must be 0 (off) or positive, but got {self.coefficient}.")
        if self.estimator not in ("k1", "k2", "k3"):
            raise ConfigError(f"`estimator` must be 'k1', 'k2' or 'k3', but got {self.estimator!r}.")

    def __call__(
        self,
        logprobs: Float[Tensor, "batch response"],
        ref_logprobs: Float[Tensor, "batch response"],
        response_mask: Bool[Tensor, "batch response"],
    ) -> Float[Tensor, "batch response"]:
        """Return coefficient * KL estimate for each token.

        Args:
            logprobs: Of the policy that is trained, in nats.
            ref_logprobs: Of the reference policy, in nats. No gradient flows into it.
            response_mask: True where the token is trained.

        Returns:
            Losses, exactly 0 outside the mask in value and gradient.
        """
        if self.coefficient == 0:
            return torch.zeros_like(logprobs)
        policy = zero_outside(logprobs, response_mask)
        reference = zero_outside(ref_logprobs.detach(), response_mask)
        return self.coefficient * kl_estimate(policy, reference, self.estimator)
