import pytest

from aepo_lightning.branching import NeverBranch
from aepo_lightning.contracts.branching import BranchContext, BranchPolicy


def test_is_a_branch_policy():
    assert isinstance(NeverBranch(), BranchPolicy)


@pytest.mark.parametrize("entropy", [0.0, 5.0, 1e9])
@pytest.mark.parametrize("uniform", [0.0, 0.999])
def test_never_branches(entropy, uniform):
    context = BranchContext(entropy=entropy, initial_entropy=0.0, consecutive_branches=0, uniform=uniform)
    assert NeverBranch().num_branches(context) == 0
