"""From the rewards of a group to the advantage of every token.

group_zscore.py        one advantage per trajectory: the z-score within its group
entropy_statistics.py  mean and standard deviation of token entropies, mergeable over trajectories and ranks
entropy_shaping.py     one advantage per token: the trajectory's, weighted by how uncertain the token was
"""

from aepo_lightning.advantages.entropy_shaping import EntropyShaping
from aepo_lightning.advantages.entropy_statistics import EntropyStatistics
from aepo_lightning.advantages.group_zscore import GroupZScore

__all__ = ["EntropyShaping", "EntropyStatistics", "GroupZScore"]
