"""How the k trajectories of a question are split: m start at the root, k - m may be spent on branches.

fixed.py           the same m for every question (AEPO with pre-monitoring off)
root_share.py      the same share m / k for every question (independent sampling, ARPO)
premonitoring.py   m from the entropies of one probe trajectory (AEPO)
"""

from aepo_lightning.budgets.fixed import FixedBudget
from aepo_lightning.budgets.premonitoring import PreMonitoring
from aepo_lightning.budgets.root_share import RootShare

__all__ = ["FixedBudget", "PreMonitoring", "RootShare"]
