"""How the k trajectories of a question are split: m start at the root, k - m may be spent on branches.

root_share.py      the same share m / k for every question (independent sampling, ARPO)
premonitoring.py   m from the entropies of one probe trajectory (AEPO)
"""

from aepo_lightning.budgets.premonitoring import PreMonitoring
from aepo_lightning.budgets.root_share import RootShare

__all__ = ["PreMonitoring", "RootShare"]
