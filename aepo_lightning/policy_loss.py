"""The loss of one micro-batch: objective, KL penalty and entropy bonus, divided by the totals of the optimiser step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from aepo_lightning.network import PolicyNetwork, TokenScores
from aepo_lightning.objectives import KLPenalty, LossAggregation
from aepo_lightning.protocols import Objective
from aepo_lightning.types import Minibatch, ObjectiveInput, TrajectoryBatch, WeightedMean


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Everything that makes the algorithm's loss."""

    objective: Objective
    aggregation: LossAggregation = field(default_factory=LossAggregation)
    kl_penalty: KLPenalty = field(default_factory=KLPenalty)
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus."""

    def __call__(
        self, network: PolicyNetwork, batch: TrajectoryBatch, minibatch: Minibatch, temperature: float
    ) -> tuple[Tensor, Mapping[str, WeightedMean]]:
        """Return the loss of `batch` as its share of the minibatch's, and metrics.

        Args:
            network: The policy that is trained.
            batch: One micro-batch with old log-probs and advantages.
            minibatch: The optimiser step that it belongs to, for the totals over all ranks.
            temperature: Sampling temperature of the rollouts.
        """
        assert batch.old_logprobs is not None, "`ExperienceBuilder` fills it in"
        assert batch.advantages is not None, "`ExperienceBuilder` fills it in"
        mask = batch.response_mask
        mode = "grad" if self.entropy_coefficient else "detached"
        scores: TokenScores = network(batch.input_ids, mask, temperature, mode, packed=batch.packed)
        output = self.objective(
            ObjectiveInput(
                logprobs=scores.logprobs,
                old_logprobs=batch.old_logprobs,
                advantages=batch.advantages,
                response_mask=mask,
            )
        )
        token_losses = output.token_losses - self.entropy_coefficient * scores.entropies
        if batch.ref_logprobs is not None:
            token_losses = token_losses + self.kl_penalty(scores.logprobs, batch.ref_logprobs, mask)
        loss = self.aggregation(token_losses, mask, minibatch.global_num_tokens, minibatch.global_num_sequences)
        return loss, {**output.metrics, **_token_metrics(batch, scores)}


def _token_metrics(batch: TrajectoryBatch, scores: TokenScores) -> dict[str, WeightedMean]:
    """Return the entropy of the policy and how far the engine's log-probs are from the trainer's."""
    assert batch.old_logprobs is not None
    weight = batch.response_mask.sum().to(scores.logprobs.dtype)
    gap = (batch.old_logprobs - batch.sampler_logprobs).abs() * batch.response_mask
    return {
        "entropy": WeightedMean(total=scores.entropies.detach().sum(), weight=weight),
        "sampler_logprob_gap": WeightedMean(total=gap.sum(), weight=weight),
    }
