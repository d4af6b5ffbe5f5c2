"""Returns-to-go of turns against a baseline that does not know when the trajectory stops."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.objective import RewardGroup
from aepo_lightning.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReturn:
    """Give each turn its return-to-go, less what other root chains are worth at the same turn.

    With T turns and reward R, the return-to-go of turn t (from 0) is G_t = discount^(T - 1 - t) R. Its baseline is the
    weighted mean over the trajectories of all other root chains of their G_t; one that has stopped before t counts with
    its reward. So one number is subtracted from one turn, it depends on nothing that the trajectory itself did, and no
    trajectory leaves the mean because it stopped. With `discount=1` the result is `LeaveOneOut(unit="root")`.

    Baselines of single turns that are added up over the turns a trajectory has, as in normalising rewards turn by turn
    and accumulating them, depend on when it stops; the gradient is then biased wherever the policy decides that
    (verl-project/verl#7244). A discount below 1 is not a bias of this estimate but another objective: early success is
    worth more.

    Where there is no other root chain, advantages are 0.
    """

    discount: float = 0.95
    """By turn, in (0, 1]."""
    needs_rewards: ClassVar[bool] = True
    """It has a baseline of its own: what it is given must be the rewards themselves (`NoBaseline`)."""

    def __post_init__(self) -> None:
        """Refuse a discount that has no meaning."""
        if not 0 < self.discount <= 1:
            raise ConfigError(f"`discount` must be in (0, 1], but got {self.discount}.")

    def __call__(self, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
        """Return one advantage for each turn of each trajectory.

        Args:
            group: Trajectories, their weights and their tree.
            advantages: The rewards of the trajectories.
        """
        lengths = [len(turns) for turns in group.turns]
        given, weights, roots = advantages.tolist(), group.weights.tolist(), group.roots

        def to_go(index: int, turn: int) -> float:
            return float(given[index] * self.discount ** max(0, lengths[index] - 1 - turn))

        credit = []
        for index, length in enumerate(lengths):
            others = [(other, weights[other]) for other, root in enumerate(roots) if root != roots[index]]
            total = sum(weight for _, weight in others) or 1.0
            gaps = (
                sum(weight * (to_go(index, turn) - to_go(other, turn)) for other, weight in others)
                for turn in range(length)
            )
            credit.append([gap / total for gap in gaps])
        return credit
