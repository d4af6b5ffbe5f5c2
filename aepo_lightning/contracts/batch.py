"""Trajectories as tensors: packed tokens, micro-batches, the data of one optimiser step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class AttentionBlock(NamedTuple):
    """A run of packed queries that attends to a run of packed keys."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    is_causal: bool
    """True where queries and keys are the same run, each token attending up to itself. Else every query sees every
    key."""


@dataclass(slots=True, kw_only=True, eq=False)
class PackedTokens:
    """The tokens of a batch in one row, each shared prefix once, and which trained token was predicted where.

    A token attends to those before it on its path. Tokens stand in preorder, so the tokens below token `i`, itself
    included, are those from `i` up to `subtree_end[i]`, and query `q` sees key `k` if `k <= q < subtree_end[k]`.
    """

    input_ids: Int[Tensor, " seq"]
    position_ids: Int[Tensor, " seq"]
    """Depth along the path."""
    subtree_end: Int[Tensor, " seq"]
    sources: Int[Tensor, " response"]
    """Where each trained token is predicted: the packed index of the token before it. Several may share one."""
    targets: Int[Tensor, " response"]
    """The trained tokens, each once."""
    scored_index: Int[Tensor, " _"]
    """For every True of the response mask, row by row, its index among `targets`."""
    blocks: tuple[AttentionBlock, ...]
    """Who attends to whom, as runs. The causal ones come first and hold every token once."""

    def to(self, device: torch.device | str) -> "PackedTokens":
        """Return the same with every tensor on `device`."""
        own: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in own.items()}
        return PackedTokens(**moved)


@dataclass(slots=True, kw_only=True, eq=False)
class TrajectoryBatch:
    """Trajectories as right-padded rows: one micro-batch of an optimiser step.

    Column `t` of every per-token tensor speaks about the prediction of `input_ids[:, t + 1]`, so these tensors have one
    column less than `input_ids`.
    """

    input_ids: Int[Tensor, "batch seq"]
    lengths: Int[Tensor, " batch"]
    """Tokens of each row, padding excluded. 0 marks an empty row, which carries no weight."""
    response_mask: Bool[Tensor, "batch response"]
    """True where the predicted token was sampled by the policy, hence is trained."""
    sampler_logprobs: Float[Tensor, "batch response"]
    sampler_entropies: Float[Tensor, "batch response"]
    group_index: Int[Tensor, " batch"]
    """Which question of the rollout iteration each row belongs to."""
    rewards: Float[Tensor, " batch"]
    sequence_advantages: Float[Tensor, " batch"]
    token_advantages: Float[Tensor, "batch response"] | None = None
    """Advantages before shaping where tokens of a trajectory differ; None: each token has that of its trajectory."""
    weights: Float[Tensor, " batch"] | None = None
    """How much each trajectory counts in the loss; None: all the same."""
    temperature: float = 1.0
    """Of the distribution that tokens were sampled from; log-probs of the trainer are taken at the same."""
    old_logprobs: Float[Tensor, "batch response"] | None = None
    old_entropies: Float[Tensor, "batch response"] | None = None
    ref_logprobs: Float[Tensor, "batch response"] | None = None
    advantages: Float[Tensor, "batch response"] | None = None
    kl_coefficients: Float[Tensor, "batch response"] | None = None
    """Weight of |log pi - log pi_old| in the loss of each token; None: there is no such penalty."""
    packed: PackedTokens | None = None
    """The same tokens without padding or repetition, if that is how they are to be scored."""

    def to(self, device: torch.device | str) -> "TrajectoryBatch":
        """Return the batch with every tensor on `device`."""
        own: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        movable = (Tensor, PackedTokens)
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, movable) else v for k, v in own.items()}
        return TrajectoryBatch(**moved)


@dataclass(slots=True, kw_only=True, eq=False)
class Minibatch:
    """The data of one optimiser step: micro-batches of this rank and the totals over all ranks."""

    micro_batches: Sequence[TrajectoryBatch]
    global_num_tokens: float | int
    """Response tokens of this optimiser step over all micro-batches and ranks, each counted with the weight of its
    trajectory."""
    global_num_sequences: float | int
    """Trajectories of this optimiser step over all micro-batches and ranks, each counted with its weight."""

    def to(self, device: torch.device | str) -> "Minibatch":
        """Return the minibatch with every tensor on `device`."""
        moved = [batch.to(device) for batch in self.micro_batches]
        return Minibatch(
            micro_batches=moved,
            global_num_tokens=self.global_num_tokens,
            global_num_sequences=self.global_num_sequences,
        )
