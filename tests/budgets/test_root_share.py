import pytest

from aepo_lightning.budgets import RootShare
from aepo_lightning.contracts.branching import BudgetAllocator
from aepo_lightning.errors import ConfigError


@pytest.mark.parametrize(
    ("total", "share", "expected"),
    # 16 * 0.5 = 8; 7 * 0.5 = 3.5, halves go up; 3 * 0.1 = 0.3, but one chain is the least; all of 12.
    [(16, 0.5, 8), (7, 0.5, 4), (3, 0.1, 1), (12, 1.0, 12), (1, 0.5, 1)],
    ids=["half", "half-of-odd", "at-least-one", "all", "single"],
)
def test_gives_the_share_to_the_root(total, share, expected):
    assert RootShare(share=share).global_budget(total, 0.3, [0.1]) == expected


def test_needs_no_probe_and_is_an_allocator():
    assert not RootShare().needs_probe
    assert isinstance(RootShare(), BudgetAllocator)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_refuses_what_is_no_share(share):
    with pytest.raises(ConfigError, match="`share` must be in"):
        RootShare(share=share)


def test_refuses_an_empty_budget():
    with pytest.raises(ValueError, match="`total` must be at least 1"):
        RootShare().global_budget(0, 0.0, [])
