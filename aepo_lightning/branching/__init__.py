"""When a chain branches: one decision after each tool result.

change.py             what the rules share: the entropy change and the penalty factor
never.py              no branches (GRPO and its relatives)
entropy_balanced.py   the paper's rule with its penalty for consecutive branches (AEPO; ARPO at penalty 0)
official.py           the rule of the released code
random_branching.py   branches at a constant rate: the control
"""

from aepo_lightning.branching.entropy_balanced import EntropyBalanced
from aepo_lightning.branching.never import NeverBranch
from aepo_lightning.branching.official import OfficialEntropyBalanced
from aepo_lightning.branching.random_branching import RandomBranching

__all__ = ["EntropyBalanced", "NeverBranch", "OfficialEntropyBalanced", "RandomBranching"]
