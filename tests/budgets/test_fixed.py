import pytest

from aepo_lightning.budgets import FixedBudget
from aepo_lightning.contracts.branching import BudgetAllocator
from aepo_lightning.errors import ConfigError


def test_is_a_budget_allocator_that_needs_no_probe():
    budget = FixedBudget(num_root_chains=6)
    assert isinstance(budget, BudgetAllocator)
    assert not budget.needs_probe


@pytest.mark.parametrize("entropies", [[], [0.1, 9.0]], ids=["no_tool_call", "two_tool_calls"])
@pytest.mark.parametrize("total", [6, 7, 12])
def test_is_the_same_for_every_question(total, entropies):
    assert FixedBudget(num_root_chains=6).global_budget(total, 3.0, entropies) == 6


def test_refuses_more_root_chains_than_the_budget_holds():
    with pytest.raises(ConfigError, match="must be at most the total budget, but got 9 of 8"):
        FixedBudget(num_root_chains=9).global_budget(8, 0.0, [])


@pytest.mark.parametrize("num_root_chains", [0, -1])
def test_refuses_a_split_without_a_root_chain(num_root_chains):
    with pytest.raises(ConfigError, match="`num_root_chains` must be at least 1"):
        FixedBudget(num_root_chains=num_root_chains)
