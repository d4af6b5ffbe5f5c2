"""First optimiser steps, as a user's run takes them: trees from the sampler, minibatches, loss, gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import mul

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aepo_lightning.advantages import RootBaseline
from aepo_lightning.chat_formats import TagFormat
from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.policy.network import TokenScores
from aepo_lightning.rollout import RolloutParts, RolloutSampler, SamplingSettings
from aepo_lightning.training.algorithm import Algorithm
from aepo_lightning.training.experience import ExperienceSettings
from aepo_lightning.training.loss import PolicyLoss
from aepo_lightning.training.rollout_parts import experience_builder
from benchmarks.support.laboratory.engine import TabularEngine
from benchmarks.support.laboratory.policy import TabularPolicy
from benchmarks.support.laboratory.world import ExitSearch, QuestReward

_CHUNK = 128
"""Trees that are held at once."""


class _KnownTexts(TagFormat):
    """The tag format, which remembers what it has read: a small world says few things."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, ("search",))
        self._texts: dict[tuple[int, ...], str] = {}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        key = tuple(token_ids)
        if key not in self._texts:
            self._texts[key] = super().decode(token_ids)
        return self._texts[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """First steps of one quest, one row each; independent of one another."""

    gradients: Float[Tensor, "steps parameters"]
    """Direction in which the step moves the logits, per question of the step: minus the gradient of its loss."""
    num_tokens: Float[Tensor, " steps"]
    """Generated tokens, each once, those of discarded probes included."""
    num_calls: Float[Tensor, " steps"]
    """Tool calls, likewise."""
    values: Float[Tensor, " steps"]
    """Estimate of the expected reward: the mean of the leaves."""


def joined(found: Sequence[Updates]) -> Updates:
    """Return the steps of several calls as those of one."""
    columns = {name: torch.cat([getattr(each, name) for each in found]) for name in Updates.__slots__}
    return Updates(**columns)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One algorithm with one policy."""

    algorithm: Algorithm
    policy: TabularPolicy
    groups_per_step: int = 1
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    @cached_property
    def sampler(self) -> RolloutSampler:
        """What grows trees: the library's sampler around the policy's table."""
        world, algorithm = self.policy.world, self.algorithm
        parts = RolloutParts(
            engine=TabularEngine(self.policy),
            tools=ExitSearch(world),
            reward=QuestReward(world),
            chat_format=_KnownTexts(world.tokenizer),
            allocator=algorithm.allocator,
            branch_policy=algorithm.branch_policy,
            settings=algorithm.rollout_settings(self.sampling),
        )
        return RolloutSampler(parts)

    def grow(self, quest: int, count: int, seed: int) -> list[RolloutTree]:
        """Return independent trees of a quest."""
        questions = [self.policy.world.question(quest, index) for index in range(count)]
        return self.sampler.rollout(questions, seed)

    def steps(self, trees: list[RolloutTree]) -> list[Minibatch]:
        """Return the optimiser steps that the trees make, each built alone, so that none is left out for others."""
        tokenizer, size = self.policy.world.tokenizer, self.groups_per_step
        settings = ExperienceSettings(questions_per_step=size, max_tokens_per_micro_batch=1 << 20)
        limit = self.sampling.max_response_tokens
        builder = experience_builder(self.algorithm, settings, tokenizer.pad_token_id, limit)
        parts = [trees[at : at + size] for at in range(0, len(trees), size)]
        return [step for part in parts for step in builder.build(part, self._score)]

    def loss(self, step: Minibatch) -> Float[Tensor, ""]:
        """Return the loss of a step, all of whose ratios are 1."""
        loss_of = PolicyLoss(
            objective=self.algorithm.objective,
            aggregation=self.algorithm.aggregation,
            kl_penalty=self.algorithm.kl_penalty,
        )
        (batch,) = step.micro_batches
        return loss_of(self.policy, batch, step)[0]

    def updates(self, quest: int, num_steps: int, seed: int) -> Updates:
        """Take first steps.

        Args:
            quest: What is asked in all of them.
            num_steps: How many.
            seed: Of the trees. The same seed gives the same steps.
        """
        chunk = _CHUNK - _CHUNK % self.groups_per_step
        counts = [min(chunk, left) for left in range(num_steps * self.groups_per_step, 0, -chunk)]
        return joined([self._updates(self.grow(quest, count, seed + at)) for at, count in enumerate(counts)])

    def mixed_updates(self, num_steps: int, seed: int) -> list[Updates]:
        """Take first steps that hold as many groups of every quest, `groups_per_step` in all.

        Args:
            num_steps: How many.
            seed: Of the trees.

        Returns:
            For each quest what the steps do to its own states, times the number of quests: what a step of its groups
            alone would do if nothing went over the step.
        """
        world = self.policy.world
        count, owners = len(world.quests), torch.tensor([state.quest for state in world.states])
        size = self.groups_per_step // count
        grown = [self.grow(quest, num_steps * size, seed) for quest in range(count)]
        parts = [[trees[at : at + size] for at in range(0, len(trees), size)] for trees in grown]
        steps = self.steps([tree for step in zip(*parts, strict=True) for part in step for tree in part])
        moves = torch.stack([self._move(step) for step in steps])
        return [self._described(count * moves * (owners == quest)[:, None], own) for quest, own in enumerate(parts)]

    def _updates(self, trees: list[RolloutTree]) -> Updates:
        size = self.groups_per_step
        moves = torch.stack([self._move(step) for step in self.steps(trees)])
        return self._described(moves, [trees[at : at + size] for at in range(0, len(trees), size)])

    def _move(self, step: Minibatch) -> Float[Tensor, "states actions"]:
        return -torch.autograd.grad(self.loss(step), self.policy.logits)[0]

    def _described(self, moves: Float[Tensor, "steps states actions"], parts: list[list[RolloutTree]]) -> Updates:
        assert len(moves) == len(parts), "every step has a response token"
        return Updates(
            gradients=moves.flatten(1),
            num_tokens=_sums(parts, lambda tree: tree.num_generated_tokens),
            num_calls=_sums(parts, _num_calls),
            values=_sums(parts, self.estimate) / len(parts[0]),
        )

    def estimate(self, tree: RolloutTree) -> float:
        """Return a tree's estimate of the expected reward: the mean of its leaves, as the algorithm weighs them.

        Top-ups are left out where the algorithm's baseline leaves them out.
        """
        weights = tree.leaf_weights(self.algorithm.leaf_weights)
        if isinstance(self.algorithm.credit, RootBaseline):
            is_global = [int(leaf.seed_path[1]) < tree.global_budget for leaf in tree.leaves]
            weights = list(map(mul, weights, is_global))
        return sum(map(mul, weights, tree.rewards)) / sum(weights)

    def _score(self, batch: TrajectoryBatch) -> TokenScores:
        with torch.no_grad():
            scores: TokenScores = self.policy(batch.input_ids, batch.response_mask)
            return scores


def _sums(parts: list[list[RolloutTree]], figure: Callable[[RolloutTree], float]) -> Float[Tensor, " steps"]:
    return torch.tensor([sum(map(figure, trees)) for trees in parts], dtype=torch.float64)


def _num_calls(tree: RolloutTree) -> int:
    return sum(segment.source is SegmentSource.TOOL for segment in tree.segments) + len(tree.unused_calls)
