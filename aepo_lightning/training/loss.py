"""The loss of one micro-batch: objective, importance correction, KL penalty, entropy bonus, over the step's totals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.objective import Objective, ObjectiveInput, WeightedMean, evaluate_objective
from aepo_lightning.objectives import ImportanceCorrection, KLPenalty, LossAggregation
from aepo_lightning.objectives.importance_correction import CorrectionOutput
from aepo_lightning.ops.masked import weighted_mean, zero_outside
from aepo_lightning.policy.network import PolicyNetwork, TokenScores

_REFERENCE_KL = KLPenalty(coefficient=1.0)
"""What is logged of the distance from the reference, whatever the penalty makes of it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossParts:
    """What the losses of the tokens of a micro-batch are made of, before aggregation."""

    inputs: ObjectiveInput
    """What the objective saw."""
    correction: CorrectionOutput
    objective: Tensor
    """Of the objective, times the weights of the importance correction."""
    entropy_bonus: Tensor
    """Is subtracted."""
    kl_penalty: Tensor | None
    """Against the reference policy; None without one in the loss."""
    distance_penalty: Tensor | None
    """On leaving the old policy, for a few tokens (`KLCov`); None without one."""
    total: Tensor
    """All of it, times the weight of the trajectory."""
    metrics: Mapping[str, WeightedMean]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Everything that makes the algorithm's loss.

    Weights of trajectories multiply all of it: objective, KL penalty, entropy bonus. Metrics count every token alike.
    """

    objective: Objective
    aggregation: LossAggregation = field(default_factory=LossAggregation)
    kl_penalty: KLPenalty = field(default_factory=KLPenalty)
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus."""
    correction: ImportanceCorrection = field(default_factory=ImportanceCorrection)
    """Weights of the objective's token losses against the engine. KL penalty and entropy bonus have none."""

    def __call__(
        self,
        network: PolicyNetwork,
        batch: TrajectoryBatch,
        minibatch: Minibatch,
        log_ratios: list[Tensor] | None = None,
    ) -> tuple[Tensor, Mapping[str, WeightedMean]]:
        """Return the loss of `batch` as its share of the minibatch's, and metrics.

        Args:
            network: The policy that is trained.
            batch: One micro-batch with advantages. Without old log-probs it is on-policy: the present ones are the old
                ones, so every ratio is exactly 1 and the gradient is that of the policy gradient.
            minibatch: The optimiser step that it belongs to, for the totals over all ranks.
            log_ratios: Gets log pi - log pi_old of the response tokens, whatever ratio the objective makes of them.
        """
        mode = "grad" if self.entropy_coefficient else "detached"
        scores: TokenScores = network(
            batch.input_ids, batch.response_mask, batch.temperature, mode, packed=batch.packed
        )
        parts = self.parts(scores, batch)
        if log_ratios is not None:
            log_ratios.append((scores.logprobs.detach() - parts.inputs.old_logprobs)[batch.response_mask])
        loss = self.aggregation(
            parts.total, batch.response_mask, minibatch.global_num_tokens, minibatch.global_num_sequences
        )
        return loss, {**parts.metrics, "entropy": weighted_mean(scores.entropies, batch.response_mask)}

    def parts(self, scores: TokenScores, batch: TrajectoryBatch) -> LossParts:
        """Return what the loss of each token is made of.

        Args:
            scores: Of the policy that is trained.
            batch: One micro-batch with advantages.
        """
        assert batch.advantages is not None, "`ExperienceBuilder` fills it in"
        mask = batch.response_mask
        corrected = self.correction(scores.logprobs, batch.old_logprobs, batch.sampler_logprobs, mask)
        inputs = ObjectiveInput(
            logprobs=scores.logprobs,
            old_logprobs=corrected.old_logprobs,
            advantages=batch.advantages,
            response_mask=mask,
            old_entropies=self._old_entropies(batch, scores),
        )
        output = evaluate_objective(self.objective, inputs)
        objective, bonus = output.token_losses * corrected.token_weights, self.entropy_coefficient * scores.entropies
        token_losses = objective - bonus
        penalty = distance_penalty = None
        if batch.ref_logprobs is not None and self.kl_penalty.place == "loss":
            penalty = self.kl_penalty(scores.logprobs, batch.ref_logprobs, mask)
            token_losses = token_losses + penalty
        if batch.kl_coefficients is not None:
            distance = zero_outside(scores.logprobs - corrected.old_logprobs, mask).abs()
            distance_penalty = batch.kl_coefficients * distance
            token_losses = token_losses + distance_penalty
        if batch.weights is not None:
            token_losses = token_losses * batch.weights[:, None]
        metrics = {**output.metrics, **corrected.metrics}
        if batch.ref_logprobs is not None:
            distances = _REFERENCE_KL(scores.logprobs.detach(), batch.ref_logprobs, mask)
            metrics["reference_kl"] = weighted_mean(distances, mask)
        return LossParts(
            inputs=inputs,
            correction=corrected,
            objective=objective,
            entropy_bonus=bonus,
            kl_penalty=penalty,
            distance_penalty=distance_penalty,
            total=token_losses,
            metrics=metrics,
        )

    @staticmethod
    def _old_entropies(batch: TrajectoryBatch, scores: TokenScores) -> Tensor | None:
        """Return the entropies before the update, which without old log-probs are the present ones."""
        return scores.entropies.detach() if batch.old_logprobs is None else batch.old_entropies
