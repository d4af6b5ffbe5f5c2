"""Credit that trains a shared turn once."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from aepo_lightning.contracts.objective import RewardGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBranch:
    """Give a shared turn the advantage of the chain that sampled it, and 0 in the trajectories that branched off later.

    The chain is the one whose branch path is the shortest. Where it has no reward, the first trajectory below that has
    one takes its place. Tokens with advantage 0 still count in the denominators of the loss, and KL penalty and entropy
    bonus see them as often as there are trajectories.
    """

    def __call__(self, group: RewardGroup, advantages: Float[Tensor, " group"]) -> list[list[float]]:
        """Return one advantage for each turn of each trajectory.

        Args:
            group: Trajectories and their tree.
            advantages: Of the trajectories.
        """
        first: dict[int, int] = {}
        paths = group.turns
        order = sorted(range(len(group.leaves)), key=lambda index: len(group.leaves[index].seed_path))
        for index in order:
            for turn in paths[index]:
                first.setdefault(turn.segment_id, index)
        values = advantages.tolist()
        return [
            [values[index] if first[turn.segment_id] == index else 0.0 for turn in turns]
            for index, turns in enumerate(paths)
        ]
