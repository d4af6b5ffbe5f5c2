"""Dynamic sampling: an iteration asks further questions until enough of its groups say something.

`DynamicSampling` is an algorithm's rule. `SamplingRounds` applies it to one iteration after another: all ranks decide
together, ask equally many questions in every round, and train on as many groups each.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.contracts.tree import RolloutTree
from aepo_lightning.distributed.collectives import all_reduce
from aepo_lightning.errors import ConfigError
from aepo_lightning.training.question_stream import QuestionStream, RolloutOrder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicSampling:
    """Replace groups without information by those of fresh questions, within the iteration.

    Raises:
        ConfigError: If `max_rounds` is not positive or `metric` is an unknown word.

    References:
        DAPO, arXiv:2503.14476, eq. 11: groups with 0 < number of correct trajectories < size of the group; its own
        reward is correctness, so `reward` and `correct` are the same there. Departures: a bounded number of rounds,
        after which a run goes on with what it has, as many questions a round as the rate of informative groups so far
        asks for, and `reward`, which also serves graded rewards.
    """

    max_rounds: int = 9
    """Most further rounds of an iteration. A round asks at most as many questions as an iteration has."""
    metric: Literal["reward", "correct"] = "reward"
    """What must differ within a group: the reward as it was given, before any penalty for its length, or whether the
    answer is correct."""

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        if self.max_rounds < 1:
            raise ConfigError(
                f"`max_rounds` must be at least 1, but got {self.max_rounds}. Use `dynamic_sampling=null` for none, or "
                "`drop_zero_variance_groups` to leave groups out without asking again."
            )
        if self.metric not in ("reward", "correct"):
            raise ConfigError(f"`metric` must be 'reward' or 'correct', but got {self.metric!r}.")

    def is_informative(self, tree: RolloutTree) -> bool:
        """Return whether the trajectories of a finished tree differ; those whose reward failed do not count."""
        scored = tree.scored_leaves
        if self.metric == "reward":
            return len({reward for _, reward in scored}) > 1
        return len({leaf.reward is not None and leaf.reward.is_correct for leaf, _ in scored}) > 1


@dataclass(slots=True, kw_only=True)
class SamplingRounds:
    """The rounds of one iteration after another, on this rank."""

    rule: DynamicSampling | None
    """None has no further rounds, and every group is trained on."""
    num_rounds: int = 0
    """Further rounds of this iteration."""
    num_asked: int = 0
    """Questions that they asked, over all ranks."""
    _num_wanted: int = 0
    """Groups of this rank that the iteration trains on."""
    _has_warned: bool = field(default=False)

    def begin(self, num_wanted: int) -> None:
        """Begin an iteration.

        Args:
            num_wanted: Groups of each rank, as many as the first round asks.
        """
        self.num_rounds, self.num_asked, self._num_wanted = 0, 0, num_wanted

    def order(
        self,
        trees: Sequence[RolloutTree],
        stream: QuestionStream,
        iteration: int,
        num_asked: int,
        rank: int,
        ranks: int,
    ) -> RolloutOrder | None:
        """Return this rank's share of a further round, or None if the iteration needs none. Collective.

        Args:
            trees: All of this iteration so far, of this rank.
            stream: Where questions come from.
            iteration: Its number.
            num_asked: Questions that were asked before this round, over all ranks.
            rank: Whose share.
            ranks: How many ranks share the questions.
        """
        size = self._next_size(trees, iteration)
        if not size:
            return None
        round_stream = replace(stream, questions_per_iteration=size * ranks)
        order = round_stream.order(iteration, num_asked, rank, ranks)
        self.num_rounds, self.num_asked = self.num_rounds + 1, self.num_asked + size * ranks
        return replace(order, name=f"{order.name}-round{self.num_rounds}")

    def _next_size(self, trees: Sequence[RolloutTree], iteration: int) -> int:
        """Return how many questions each rank asks next, enough by the rate so far; 0 ends the iteration."""
        if self.rule is None:
            return 0
        own = sum(map(self.rule.is_informative, trees))
        num_found, num_grown, num_kept = map(int, all_reduce([own, len(trees), min(own, self._num_wanted)]))
        (num_missing,) = map(int, all_reduce([max(0, self._num_wanted - own)], "max"))
        if not num_missing:
            return 0
        if self.num_rounds == self.rule.max_rounds:
            if not self._has_warned:
                _warn(iteration, num_kept, num_grown, self.rule)
            self._has_warned = True
            return 0
        return min(self._num_wanted, -(-num_missing * num_grown // num_found) if num_found else self._num_wanted)

    def chosen(self, trees: Sequence[RolloutTree]) -> list[RolloutTree]:
        """Return the trees that the steps of the iteration are made of: informative ones first, as they were asked.

        Every rank has as many. Where too few are informative, others stand behind them.
        """
        if self.rule is None:
            return list(trees)
        return sorted(trees, key=lambda tree: not self._is_informative(tree))[: self._num_wanted]

    def _is_informative(self, tree: RolloutTree) -> bool:
        return self.rule is None or self.rule.is_informative(tree)

    def metrics(self, trees: Sequence[RolloutTree]) -> dict[str, float]:
        """Return figures about the rounds, under the names that are logged; none without a rule. Collective.

        Args:
            trees: All of this iteration, of this rank.
        """
        if self.rule is None:
            return {}
        kept = sum(map(self._is_informative, self.chosen(trees)))
        num_kept, num_grown = all_reduce([kept, len(trees)])
        return {
            "rollout/num_resampling_rounds": float(self.num_rounds),
            "rollout/discarded_groups_fraction": 1 - num_kept / num_grown,
        }


@rank_zero_only
def _warn(iteration: int, num_kept: int, num_grown: int, rule: DynamicSampling) -> None:
    logger.warning(
        "Iteration %d: dynamic sampling asked %d questions in %d rounds and found %d groups to train on, fewer than it "
        "has places for. Its steps train on these, and one that has none is left out. Questions are too easy or too "
        "hard for the policy: change them, or raise `algorithm.budget` or `algorithm.dynamic_sampling.max_rounds`. "
        "This is said once.",
        iteration,
        num_grown,
        rule.max_rounds + 1,
        num_kept,
    )
