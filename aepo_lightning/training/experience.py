"""From rollout trees to the data of optimiser steps: advantages, micro-batches within a token budget, old log-probs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aepo_lightning.advantages import KLCov, OverlongPenalty
from aepo_lightning.contracts.batch import Minibatch, TrajectoryBatch
from aepo_lightning.contracts.objective import AdvantageEstimator, Credit
from aepo_lightning.contracts.shaping import AdvantageShaping, shape_advantages
from aepo_lightning.contracts.tree import LeafWeighting, RolloutTree
from aepo_lightning.distributed.collectives import all_reduce, world_size
from aepo_lightning.errors import ConfigError
from aepo_lightning.objectives import KLPenalty
from aepo_lightning.policy.network import TokenScores
from aepo_lightning.training.advantage_checks import check_advantages
from aepo_lightning.training.batching import Batcher, Row, describe_batches
from aepo_lightning.training.dynamic_sampling import DynamicSampling
from aepo_lightning.training.group_rows import GroupRows
from aepo_lightning.training.kl_in_reward import penalise
from aepo_lightning.training.step_normalization import token_advantages, whiten

Scorer = Callable[[TrajectoryBatch], TokenScores]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceSettings:
    """How the trees of an iteration become optimiser steps: what is the user's choice under every algorithm.

    Raises:
        ConfigError: If a number is not positive or a word is unknown.
    """

    questions_per_step: int = 8
    """Questions per optimiser step, over all ranks."""
    num_epochs: int = 1
    """How often the update passes over the trajectories of an iteration, each time in the same steps. Advantages and
    old log-probs stay those from before the first pass."""
    max_tokens_per_micro_batch: int = 16384
    """Most tokens of one micro-batch, padding included. A longer trajectory gets a micro-batch of its own."""
    packing: Literal["padded", "flat", "tree"] = "padded"
    """How a micro-batch runs: as right-padded rows, as one row of whole trajectories without padding, or as one row
    that holds every prefix which trajectories of a question share once. The numbers are the same."""
    old_logprobs: Literal["recompute", "sampler", "auto"] = "recompute"
    """`recompute`: the trainer scores the tokens before the first update. `sampler`: the engine's log-probs are taken
    as is. `auto`: as `recompute`, but without the pass where it could not make a difference: the iteration is one
    optimiser step, its rollouts are those of the present weights, and no shaping, mask or penalty looks at scores."""

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        for name in ("questions_per_step", "num_epochs", "max_tokens_per_micro_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, but got {getattr(self, name)}.")
        if self.packing not in ("padded", "flat", "tree"):
            raise ConfigError(f"`packing` must be 'padded', 'flat' or 'tree', but got {self.packing!r}.")
        if self.old_logprobs not in ("recompute", "sampler", "auto"):
            raise ConfigError(
                f"`old_logprobs` must be 'recompute', 'sampler' or 'auto', but got {self.old_logprobs!r}."
            )

    def num_steps(self, questions_per_iteration: int) -> int:
        """Return the optimiser steps of an iteration, over all passes.

        Args:
            questions_per_iteration: Over all ranks.

        Raises:
            ConfigError: If the questions do not fill their steps.
        """
        if questions_per_iteration < 1 or questions_per_iteration % self.questions_per_step:
            raise ConfigError(
                f"`questions_per_iteration` must be a positive multiple of `questions_per_step` "
                f"({self.questions_per_step}), but got {questions_per_iteration}."
            )
        return self.num_epochs * (questions_per_iteration // self.questions_per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperienceBuilder:
    """Prepares what the trainer sees of one rollout iteration.

    Raises:
        ConfigError: If estimator, leaf weights, credit and normalisation do not fit together.
    """

    advantage_estimator: AdvantageEstimator
    shaping: AdvantageShaping | None = None
    """Advantages of single tokens, such as the entropy-aware one; None leaves one advantage per trajectory."""
    token_mask: AdvantageShaping | None = None
    """Which tokens keep their advantage, after shaping; None keeps all."""
    kl_cov: KLCov | None = None
    """Penalty on leaving the old policy, for a few tokens; None penalises none."""
    drop_zero_variance_groups: bool = False
    """Leave out questions whose trajectories all have the same reward; a step without any other keeps them."""
    leaf_weights: LeafWeighting = "uniform"
    """How much each trajectory of a tree counts, in advantages and loss."""
    credit: Credit | None = None
    """Gives each turn its own advantage; None gives every turn that of its trajectory."""
    normalize_over: Literal["group", "step"] = "group"
    """`step`: advantages are whitened over the optimiser step, after the estimator and before shaping."""
    dynamic_sampling: DynamicSampling | None = None
    """Says which groups are left out, unless none says anything; a step without any other is left out as well."""
    overlong: OverlongPenalty | None = None
    """Changes what the advantages see of long trajectories; with its lengths known."""
    kl_penalty: KLPenalty = field(default_factory=KLPenalty)
    """Subtracted from advantages if its place is the reward."""
    settings: ExperienceSettings = field(default_factory=ExperienceSettings)
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        """Refuse combinations without meaning."""
        check_advantages(self.advantage_estimator, self.leaf_weights, self.credit, self.normalize_over, self.overlong)

    def build(
        self,
        trees: Sequence[RolloutTree],
        score: Scorer,
        score_reference: Scorer | None = None,
        is_stale: bool = False,
    ) -> list[Minibatch]:
        """Return one minibatch per optimiser step, the same ones in every pass.

        A step without a response token on any rank is left out.

        Every rank passes its own questions, equally many, and gets equally many minibatches with equally many
        micro-batches. A group never leaves its rank. Trajectories have no response where the prompt fills the context.

        Args:
            trees: Finished trees of this rank.
            score: Log-probs and entropies by the trainer's weights, without gradient.
            score_reference: The same by the reference policy, if the objective wants a KL penalty.
            is_stale: Whether older weights than the trainer's grew a tree on some rank. The same on every rank.

        Raises:
            ValueError: If `questions_per_step` does not divide among the ranks.
        """
        num_ranks = world_size()
        if self.settings.questions_per_step % num_ranks:
            raise ValueError(
                f"`questions_per_step` must be a multiple of the {num_ranks} ranks, but got "
                f"{self.settings.questions_per_step}."
            )
        own = self.settings.questions_per_step // num_ranks
        is_kept = self._is_kept(trees)
        starts = range(0, len(trees), own)
        steps = [self._minibatch(trees[i : i + own], i, is_kept[i : i + own]) for i in starts]
        minibatches = [step for step in steps if step.global_num_tokens]
        is_on_policy = len(minibatches) * self.settings.num_epochs == 1 and not is_stale
        if score_reference is not None:
            for batch in (batch for minibatch in minibatches for batch in minibatch.micro_batches):
                batch.ref_logprobs = score_reference(batch).logprobs.cpu()
        for minibatch in minibatches:
            self._annotate(minibatch.micro_batches, score, is_on_policy)
        return minibatches * self.settings.num_epochs

    def describe(self, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """Return figures about what was built. Collective.

        Returns:
            Those of `describe_batches`, with the tokens of all passes, and, where the trainer has scored the tokens,
            `max_importance_weight`: the largest pi_old / pi_sampler of a response token. Without minibatches, none.
        """
        if not minibatches:
            return {}
        minibatches = minibatches[: len(minibatches) // self.settings.num_epochs]
        figures = describe_batches(minibatches)
        figures["num_tokens_run"] *= self.settings.num_epochs
        gaps = [
            float((batch.old_logprobs - batch.sampler_logprobs)[batch.response_mask].max())
            for minibatch in minibatches
            for batch in minibatch.micro_batches
            if batch.old_logprobs is not None and batch.response_mask.any()
        ]
        (largest,) = all_reduce([max(gaps, default=-math.inf)], "max")
        if self.settings.old_logprobs != "sampler" and largest > -math.inf:
            figures["max_importance_weight"] = math.exp(min(largest, 700.0))  # e^709 is the largest float
        return figures

    def _is_kept(self, trees: Sequence[RolloutTree]) -> list[bool]:
        """Return which groups dynamic sampling trains on: the informative ones, or all if no rank has any."""
        rule = self.dynamic_sampling
        if rule is None:
            return [True] * len(trees)
        found = [rule.is_informative(tree) for tree in trees]
        return found if all_reduce([sum(found)])[0] else [True] * len(trees)

    def _minibatch(self, trees: Sequence[RolloutTree], first_group: int, is_kept: Sequence[bool]) -> Minibatch:
        kept = [(first_group + i, tree) for i, tree in enumerate(trees) if is_kept[i]]
        rows = self._informative([row for group, tree in kept for row in self._rows(tree, group)])
        batcher = Batcher(
            max_tokens=self.settings.max_tokens_per_micro_batch,
            packing=self.settings.packing,
            pad_token_id=self.pad_token_id,
            temperature=_temperature(trees),
        )
        batches = batcher.micro_batches(rows)
        tokens = sum(row.weight * sum(row.trajectory.is_sampled[1:]) for row in rows)
        global_tokens, global_rows = all_reduce([tokens, sum(row.weight for row in rows)])
        return Minibatch(micro_batches=batches, global_num_tokens=global_tokens, global_num_sequences=global_rows)

    def _rows(self, tree: RolloutTree, group: int) -> list[Row]:
        return GroupRows(
            advantage_estimator=self.advantage_estimator,
            leaf_weights=self.leaf_weights,
            credit=self.credit,
            overlong=self.overlong,
        )(tree, group)

    def _informative(self, rows: list[Row]) -> list[Row]:
        if not self.drop_zero_variance_groups:
            return rows
        rewards: dict[int, set[float]] = {}
        for row in rows:
            rewards.setdefault(row.group, set()).add(row.reward)
        kept = [row for row in rows if len(rewards[row.group]) > 1]
        return kept if all_reduce([len(kept)])[0] else rows

    def _score_old(self, batches: Sequence[TrajectoryBatch], score: Scorer) -> None:
        """Fill in old log-probs and old entropies, of the sampler or of the trainer."""
        for batch in batches:
            if self.settings.old_logprobs == "sampler":
                batch.old_logprobs, batch.old_entropies = batch.sampler_logprobs, batch.sampler_entropies
            else:
                scores = score(batch)
                batch.old_logprobs, batch.old_entropies = scores.logprobs.cpu(), scores.entropies.cpu()

    def _annotate(self, batches: Sequence[TrajectoryBatch], score: Scorer, is_on_policy: bool) -> None:
        """Fill in old log-probs, old entropies and the advantage of every token."""
        is_penalised = self.kl_penalty.place == "reward" and self.kl_penalty.coefficient > 0
        looks_at_scores = any(part is not None for part in (self.shaping, self.token_mask, self.kl_cov)) or is_penalised
        if self.settings.old_logprobs != "auto" or looks_at_scores or not is_on_policy:
            self._score_old(batches, score)
        if is_penalised:
            penalise(batches, self.kl_penalty)
        if self.normalize_over == "step":
            whiten(batches)
        for batch in batches:
            batch.advantages = token_advantages(batch)
        for shaping in (part for part in (self.shaping, self.token_mask) if part is not None):
            for batch, advantages in zip(batches, shape_advantages(shaping, batches), strict=True):
                batch.advantages = advantages
        if self.kl_cov is not None:
            for batch, coefficients in zip(batches, self.kl_cov(batches), strict=True):
                batch.kl_coefficients = coefficients


def _temperature(trees: Sequence[RolloutTree]) -> float:
    """Return the temperature that trees were sampled at."""
    found = sorted({tree.temperature for tree in trees})
    if len(found) > 1:
        raise ValueError(f"The trees of an optimiser step must have one temperature, but got {found}. Sample alike.")
    return found[0] if found else 1.0
