"""From the rewards of a group to the advantage of every token.

group_zscore.py        one advantage per trajectory: the z-score within its group
leave_one_out.py       the same: its reward less the mean of the others
no_baseline.py         the same: its reward
node_value.py          one advantage per turn: what the trajectories below it are worth
first_branch.py        the same: a shared turn is trained by the chain that sampled it
anchor_state.py        the same: turns taken in the same state are compared
turn_return.py         the same: returns-to-go against a baseline that does not know when a trajectory stops
root_baseline.py       the same on a tree of branches: its reward less the value of the other root chains
entropy_statistics.py  mean and standard deviation of token entropies, mergeable over trajectories and ranks
overlong.py            what is taken off the reward of trajectories near the limit of their length
entropy_shaping.py     one advantage per token: the trajectory's, weighted by how uncertain the token was
entropy_modulation.py  EMPG: the opposite, turn by turn, with a bonus for a certain next turn
top_entropy_mask.py    only the most uncertain tokens keep their advantage
clip_cov.py            some tokens that would lower the entropy most lose theirs
kl_cov.py              and these are penalised for leaving the old policy
step_tokens.py         statistics over the tokens of an optimiser step
"""

from aepo_lightning.advantages.anchor_state import AnchorState
from aepo_lightning.advantages.clip_cov import ClipCov
from aepo_lightning.advantages.entropy_modulation import EntropyModulation
from aepo_lightning.advantages.entropy_shaping import EntropyShaping
from aepo_lightning.advantages.entropy_statistics import EntropyStatistics
from aepo_lightning.advantages.first_branch import FirstBranch
from aepo_lightning.advantages.group_zscore import GroupZScore
from aepo_lightning.advantages.kl_cov import KLCov
from aepo_lightning.advantages.leave_one_out import LeaveOneOut
from aepo_lightning.advantages.no_baseline import NoBaseline
from aepo_lightning.advantages.node_value import NodeValue
from aepo_lightning.advantages.overlong import OverlongPenalty
from aepo_lightning.advantages.root_baseline import RootBaseline
from aepo_lightning.advantages.top_entropy_mask import TopEntropyMask
from aepo_lightning.advantages.turn_return import TurnReturn

__all__ = [
    "AnchorState",
    "ClipCov",
    "EntropyModulation",
    "EntropyShaping",
    "EntropyStatistics",
    "FirstBranch",
    "GroupZScore",
    "KLCov",
    "LeaveOneOut",
    "NoBaseline",
    "NodeValue",
    "OverlongPenalty",
    "RootBaseline",
    "TopEntropyMask",
    "TurnReturn",
]
