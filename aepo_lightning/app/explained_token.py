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
    num_response_tokens: int
    """Those of tool results included, which are not trained."""
    tokens: Sequence[ExplainedToken]
    """Those that are trained."""
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
    found: list[tuple[tuple[TrajectoryBatch, LossParts, TokenScores, int], Tensor]] = []
    group = next(place for place, each in enumerate(relived.trees) if each is tree)
    for batch in relived.minibatch.micro_batches:
        scores = _scores(relived, batch)
        parts = loss.parts(scores, batch)
        shares.append(_shares(loss, parts.total.detach(), batch, relived))
        rows = _rows_of(batch, group, trajectory.token_ids)
        found += [((batch, parts, scores, row), shares[-1]) for row in rows]
    if not found or not leaf.is_scored:
        raise ConfigError(f"`--leaf` must be a trajectory that was trained on, but this one was not: {_why_not(leaf)}.")
    chosen, own = found[min(_num_twins_before(tree, leaf), len(found) - 1)]
    batch, parts, scores, row = chosen
    places = [place for place, is_own in enumerate(batch.response_mask[row].tolist()) if is_own]
    states = ClipStates(loss, parts)
    (gradient,) = torch.autograd.grad(parts.objective.sum(), scores.logprobs)
    tokens = [
        _token(relived, chosen, place, trajectory.prompt_length, states, gradient, float(own[row, place]))
        for place in places
    ]
    return ExplainedTrajectory(
        reward=float(batch.rewards[row]),
        group_rewards=[reward for _, reward in tree.scored_leaves],
        num_response_tokens=len(trajectory.token_ids) - trajectory.prompt_length,
        tokens=tokens,
        share=float(own[row].double().sum()),
        step_loss=float(sum(each.double().sum() for each in shares)),
        num_step_tokens=float(relived.minibatch.global_num_tokens),
    )


def _rows_of(batch: TrajectoryBatch, group: int, token_ids: Sequence[int]) -> list[int]:
    """Return the rows of a batch that hold these tokens of a group."""
    rows = range(len(batch.lengths))
    own = [row for row in rows if int(batch.group_index[row]) == group]
    return [row for row in own if batch.input_ids[row, : int(batch.lengths[row])].tolist() == list(token_ids)]


def _num_twins_before(tree: RolloutTree, leaf: Leaf) -> int:
    """Return how many trained trajectories before this one have the same tokens."""
    token_ids = tree.token_ids(leaf.segment_id)
    scored = [each for each, _ in tree.scored_leaves]
    before = scored[: next(place for place, each in enumerate(scored) if each is leaf)]
    return sum(tree.token_ids(each.segment_id) == token_ids for each in before)


def _why_not(leaf: Leaf) -> str:
    """Say why a trajectory is in no batch."""
    if leaf.reward is None or not leaf.reward.is_scored:
        reason = "" if leaf.reward is None else leaf.reward.reason
        return f"it has no reward{f' ({reason})' if reason else ''}"
    return f"the configuration leaves it out (it ended by {leaf.stop_reason}), or its group"


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
