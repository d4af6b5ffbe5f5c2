"""What an optimiser step made of one token, from its entropy to its share in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo_lightning.app.clip_states import ClipStates
from aepo_lightning.app.relived_step import RelivedStep
from aepo_lightning.contracts.batch import TrajectoryBatch
from aepo_lightning.contracts.tree import Leaf, RolloutTree
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.network import TokenScores
from aepo_lightning.training.loss import LossParts, PolicyLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedToken:
    """A token that was trained. Log-probs and entropies are in nats."""

    place: int
    """Tokens of the response before it, tool results included."""
    text: str
    sampler_entropy: float
    """As the engine reported it."""
    entropy: float
    """Under the weights that the step changes."""
    sampler_logprob: float
    old_logprob: float
    logprob: float
    importance_ratio: float
    """What the objective clips: of the token, its turn or its trajectory."""
    clip_state: str
    gradient_factor: float | None
    """What multiplies the advantage in the gradient of its log-prob; None where the advantage is 0."""
    trajectory_advantage: float
    advantage_before_shaping: float
    advantage: float
    importance_weight: float
    """Of the correction between engine and trainer."""
    objective: float
    entropy_bonus: float
    kl_penalty: float
    distance_penalty: float
    trajectory_weight: float
    loss: float
    """(objective - entropy bonus + penalties) times the weight of the trajectory."""
    share: float
    """What it adds to the loss of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedTrajectory:
    """A trajectory and its tokens in an optimiser step."""

    reward: float
    group_rewards: Sequence[float]
    tokens: Sequence[ExplainedToken]
    share: float
    step_loss: float
    """Summed over the tokens of the step."""
    num_step_tokens: float


def explain_trajectory(relived: RelivedStep, tree: RolloutTree, leaf: Leaf) -> ExplainedTrajectory:
    """Return what a step made of the tokens of a trajectory.

    Args:
        relived: The step that trains on it.
        tree: Of its question, one of the step's trees.
        leaf: Its end.

    Raises:
        ConfigError: If the trajectory was left out of the step.
    """
    trajectory = tree.trajectory(leaf)
    loss = relived.module.policy_loss
    shares: list[Tensor] = []
    found: tuple[TrajectoryBatch, LossParts, TokenScores, int] | None = None
    group = next(place for place, each in enumerate(relived.trees) if each is tree)
    for batch in relived.minibatch.micro_batches:
        scores = _scores(relived, batch)
        parts = loss.parts(scores, batch)
        shares.append(_shares(loss, parts.total.detach(), batch, relived))
        for row, length in enumerate(batch.lengths.tolist()):
            is_it = batch.input_ids[row, :length].tolist() == trajectory.token_ids
            if found is None and is_it and int(batch.group_index[row]) == group:
                found, own = (batch, parts, scores, row), shares[-1]
    if found is None:
        raise ConfigError("`--leaf` must be a trajectory that was trained on, but this one was left out of the step.")
    batch, parts, scores, row = found
    places = [place for place, is_own in enumerate(batch.response_mask[row].tolist()) if is_own]
    states = ClipStates(loss, parts)
    (gradient,) = torch.autograd.grad(parts.objective.sum(), scores.logprobs)
    tokens = [
        _token(relived, found, place, trajectory.prompt_length, states, gradient, float(own[row, place]))
        for place in places
    ]
    return ExplainedTrajectory(
        reward=float(batch.rewards[row]),
        group_rewards=[reward for _, reward in tree.scored_leaves],
        tokens=tokens,
        share=float(own[row].double().sum()),
        step_loss=float(sum(each.double().sum() for each in shares)),
        num_step_tokens=float(relived.minibatch.global_num_tokens),
    )


def _scores(relived: RelivedStep, batch: TrajectoryBatch) -> TokenScores:
    """Return scores whose log-probs are where gradients are asked for."""
    with torch.no_grad():
        network = relived.module.trained_network()
        scores = network(batch.input_ids, batch.response_mask, batch.temperature, packed=batch.packed)
    return TokenScores(logprobs=scores.logprobs.detach().requires_grad_(), entropies=scores.entropies.detach())


def _shares(loss: PolicyLoss, total: Tensor, batch: TrajectoryBatch, relived: RelivedStep) -> Tensor:
    """Return what each token adds to the loss: the aggregation is linear, so its gradient says how much each counts."""
    losses, minibatch = total.clone().requires_grad_(), relived.minibatch
    aggregated = loss.aggregation(
        losses, batch.response_mask, minibatch.global_num_tokens, minibatch.global_num_sequences
    )
    (factors,) = torch.autograd.grad(aggregated, losses)
    return factors * total


def _token(
    relived: RelivedStep,
    found: tuple[TrajectoryBatch, LossParts, TokenScores, int],
    place: int,
    prompt_length: int,
    states: ClipStates,
    gradient: Tensor,
    share: float,
) -> ExplainedToken:
    batch, parts, scores, row = found
    at = (row, place)
    advantages = parts.inputs.advantages
    ratio, state = states.of(row, place)
    own = batch.sequence_advantages[row] if batch.token_advantages is None else batch.token_advantages[at]
    advantage = float(advantages[at])
    return ExplainedToken(
        place=place + 1 - prompt_length,
        text=str(relived.policy.tokenizer.decode([int(batch.input_ids[row, place + 1])])),
        sampler_entropy=float(batch.sampler_entropies[at]),
        entropy=float(scores.entropies[at]),
        sampler_logprob=float(batch.sampler_logprobs[at]),
        old_logprob=float(parts.inputs.old_logprobs[at]),
        logprob=float(scores.logprobs[at].detach()),
        importance_ratio=ratio,
        clip_state=state,
        gradient_factor=-float(gradient[at]) / advantage if advantage else None,
        trajectory_advantage=float(batch.sequence_advantages[row]),
        advantage_before_shaping=float(own),
        advantage=advantage,
        importance_weight=float(parts.correction.token_weights[at]),
        objective=float(parts.objective[at].detach()),
        entropy_bonus=float(parts.entropy_bonus[at]),
        kl_penalty=0.0 if parts.kl_penalty is None else float(parts.kl_penalty[at].detach()),
        distance_penalty=0.0 if parts.distance_penalty is None else float(parts.distance_penalty[at].detach()),
        trajectory_weight=1.0 if batch.weights is None else float(batch.weights[row]),
        loss=float(parts.total[at].detach()),
        share=share,
    )
