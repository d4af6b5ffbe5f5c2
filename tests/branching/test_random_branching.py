"""The control: branches at a constant rate, whatever the entropies say."""

import pytest

from aepo_lightning.branching import RandomBranching
from aepo_lightning.contracts.branching import BranchContext, BranchPolicy, ScoredBranchPolicy
from aepo_lightning.errors import ConfigError


def context(uniform, entropy=0.0, consecutive_branches=0):
    return BranchContext(
        entropy=entropy, initial_entropy=0.5, consecutive_branches=consecutive_branches, uniform=uniform
    )


def test_is_a_branch_policy_without_a_base_that_entropy_could_move():
    assert isinstance(RandomBranching(), BranchPolicy)
    assert not isinstance(RandomBranching(), ScoredBranchPolicy)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_branches_at_its_rate_whatever_the_entropy_and_the_branches_before(rate):
    uniforms = [number / 10 for number in range(10)]
    for entropy, steps in ((0.0, 0), (9.0, 0), (float("nan"), 5)):
        found = [RandomBranching(rate=rate).num_branches(context(u, entropy, steps)) for u in uniforms]
        assert found == [1] * round(10 * rate) + [0] * round(10 - 10 * rate)


def test_opens_as_many_siblings_as_its_width():
    assert RandomBranching(rate=1.0, branch_width=3).num_branches(context(0.9)) == 3


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rate": 1.5}, r"`rate` must be in \[0, 1\], but got 1.5"),
        ({"rate": -0.1}, r"`rate` must be in \[0, 1\], but got -0.1"),
        ({"rate": float("nan")}, r"`rate` must be in \[0, 1\], but got nan"),
        ({"branch_width": 0}, "`branch_width` must be at least 1, but got 0"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(fields, match):
    with pytest.raises(ConfigError, match=match):
        RandomBranching(**fields)
