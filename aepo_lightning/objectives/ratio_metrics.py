"""What every objective logs about the importance ratio."""

from jaxtyping import Bool, Float
from torch import Tensor

from aepo_lightning.contracts.objective import WeightedMean
from aepo_lightning.objectives.kl import kl_estimate
from aepo_lightning.ops.masked import weighted_mean


def ratio_metrics(
    logprobs: Float[Tensor, "batch response"],
    old_logprobs: Float[Tensor, "batch response"],
    importance_ratio: Float[Tensor, "batch response"],
    response_mask: Bool[Tensor, "batch response"],
) -> dict[str, WeightedMean]:
    """Return the mean ratio and the distance from the old policy, over response tokens.

    Args:
        logprobs: Of the current policy, finite outside the mask.
        old_logprobs: Of the policy before the update, which sampled the tokens.
        importance_ratio: The ratio that the objective used, of tokens or of whole sequences.
        response_mask: True where the token is trained.

    Returns:
        `importance_ratio` and `approx_kl`: the k3 estimate of KL(old || new) in nats per token, never negative.
    """
    approx_kl = kl_estimate(old_logprobs.detach(), logprobs.detach(), "k3")
    return {
        "importance_ratio": weighted_mean(importance_ratio, response_mask),
        "approx_kl": weighted_mean(approx_kl, response_mask),
    }
