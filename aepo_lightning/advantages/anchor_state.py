"""GiGPO's credit: turns taken in the same state are compared with each other."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from aepo_lightning.advantages.group_zscore import GroupZScore
from aepo_lightning.contracts.objective import RewardGroup
from aepo_lightning.contracts.question import SegmentSource
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorState:
    """Add to the advantage of a trajectory, turn by turn, how its return compares with those from the same state.

    A = A_episode + weight * A_step. A turn's return is the reward discounted by the turns that follow it. Turns of the
    group that were taken in the same state are one set, over which returns are centred and, if asked, scaled; a turn
    whose state no other has gets A_step = 0. First turns share the state of the prompt. A later turn's state is what
    it had just read.

    References:
        GiGPO, arXiv:2505.10978, eqs. 6 to 8; A_episode is the estimator's (eq. 3). Departures: the state is the last
        tool result instead of an environment's observation, and the deviation is `GroupZScore`'s.
    """

    weight: float = 1.0
    """omega: of the step advantage."""
    discount: float = 0.95
    """gamma: by turn."""
    normalize_by_std: bool = False
    """Whether step advantages are divided by the standard deviation of their set (F_norm = std; False: 1)."""
    anchor: Literal["call", "observation"] = "call"
    """What a state is: the tool calls just answered with their results, or the results alone."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        if not self.weight >= 0:
            raise ConfigError(f"`weight` must be 0 or positive, but got {self.weight}.")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"`discount` must be in (0, 1], but got {self.discount}.")
        if self.anchor not in ("call", "observation"):
            raise ConfigError(f"`anchor` must be 'call' or 'observation', but got {self.anchor!r}.")

    def __call__(self, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
        """Return one advantage for each turn of each trajectory.

        Args:
            group: Trajectories, rewards and weights.
            advantages: Of the trajectories.
        """
        sets: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
        for index in range(len(group.leaves)):
            for turn, state in enumerate(self._states(group, index)):
                sets[state].append((index, turn))
        lengths, roots = list(map(len, group.turns)), group.roots
        credit = [[value] * length for value, length in zip(advantages.tolist(), lengths, strict=True)]
        for places in sets.values():
            returns = [
                float(group.rewards[index]) * self.discount ** (lengths[index] - 1 - turn) for index, turn in places
            ]
            values = self._compared(returns, [index for index, _ in places], group.weights, roots)
            for (index, turn), value in zip(places, values, strict=True):
                credit[index][turn] += self.weight * value
        return credit

    def _states(self, group: RewardGroup, index: int) -> list[Hashable]:
        """Return the state in which each turn of a trajectory was taken."""
        states: list[Hashable] = []
        read: tuple[Hashable, ...] = ()
        for segment in group.tree.path(group.leaves[index].segment_id)[1:]:
            if segment.source is SegmentSource.POLICY:
                states.append(read)
                read = ()
            else:
                call = repr(segment.tool_call) if self.anchor == "call" else ""
                read += ((call, tuple(segment.token_ids)),)
        return states

    def _compared(
        self, returns: Sequence[float], members: list[int], weights: Float[Tensor, " group"], roots: Sequence[int]
    ) -> list[float]:
        """Return how each return of a set compares with the others, whose trajectories are `members`."""
        is_weighted = bool((weights != 1).any())
        zscore = GroupZScore(normalize_by_std=self.normalize_by_std)
        return zscore(
            torch.tensor(returns, dtype=torch.float64),
            weights=weights.double()[members] if is_weighted else None,
            roots=[roots[index] for index in members],
        ).tolist()
