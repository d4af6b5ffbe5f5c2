"""Trees are cut within the budget at the least cost, which lies between that of the tree and that of the rows."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo_lightning.ops.tree_packing import preorder
from aepo_lightning.ops.tree_partition import cut_tree, fill_bins
from tests.ops.test_tree_packing import prefixes, rows_of_tokens

budgets = st.integers(1, 60)


def cuts_of(items):
    """Every way to cut a list into runs."""
    for number in range(len(items)):
        for inner in combinations(range(1, len(items)), number):
            borders = [0, *inner, len(items)]
            yield [items[start:stop] for start, stop in pairwise(borders)]


@given(rows=rows_of_tokens, budget=budgets)
def test_parts_hold_every_trajectory_once_and_keep_the_budget(rows, budget):
    parts = cut_tree(rows, budget)
    assert sorted(index for part in parts for index in part.rows) == list(range(len(rows)))
    for part in parts:
        assert part.num_tokens == len(prefixes([rows[index] for index in part.rows]))
        assert part.num_tokens <= budget or len(part.rows) == 1


@given(rows=rows_of_tokens, budget=budgets)
def test_the_cost_is_at_least_that_of_the_tree_and_at_most_that_of_the_rows(rows, budget):
    cost = sum(part.num_tokens for part in cut_tree(rows, budget))
    assert len(prefixes(rows)) <= cost <= sum(map(len, rows))


@given(rows=rows_of_tokens, budget=budgets)
def test_no_other_cut_of_the_walk_costs_less_or_as_much_with_fewer_parts(rows, budget):
    walk = [rows[index] for index in preorder(rows)]
    costs = []
    for cut in cuts_of(walk):
        sizes = [len(prefixes(part)) for part in cut]
        if all(size <= budget or len(part) == 1 for size, part in zip(sizes, cut, strict=True)):
            costs.append((sum(sizes), len(cut)))
    parts = cut_tree(rows, budget)
    assert (sum(part.num_tokens for part in parts), len(parts)) == min(costs)


@given(rows=rows_of_tokens)
def test_a_tree_within_the_budget_stays_whole(rows):
    (part,) = cut_tree(rows, len(prefixes(rows)))
    assert part.num_tokens == len(prefixes(rows))


def test_a_cut_goes_where_the_shared_trunk_is_shortest():
    # Two pairs share six tokens within and one between: 7 + 1 + 6 + 1 = 15 tokens. Below 15 the pairs part, at a cost
    # of the one token that they share.
    first, second = [1, 2, 2, 2, 2, 2], [1, 3, 3, 3, 3, 3]
    rows = [[*first, 1], [*first, 2], [*second, 1], [*second, 2]]
    parts = cut_tree(rows, 14)
    assert [part.rows for part in parts] == [(0, 1), (2, 3)]
    assert [part.num_tokens for part in parts] == [8, 8]


def test_no_trajectories_are_no_parts():
    assert cut_tree([], 10) == []


@given(sizes=st.lists(st.integers(1, 30), max_size=12), budget=budgets)
def test_bins_hold_every_item_once_and_keep_the_budget(sizes, budget):
    bins = fill_bins(sizes, budget)
    assert sorted(index for found in bins for index in found) == list(range(len(sizes)))
    totals = [sum(sizes[index] for index in found) for found in bins]
    assert all(total <= budget or len(found) == 1 for total, found in zip(totals, bins, strict=True))
    # No two bins fit into one, so there are at most twice as many as needed.
    assert all(a + b > budget for a, b in combinations(totals, 2))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, [[1], [3], [0], [2], [4]]),
        # 8 + 2, then 7 + 2 + 1.
        (10, [[1, 0], [3, 2, 4]]),
        (30, [[1, 3, 0, 2, 4]]),
    ],
)
def test_bins_worked_by_hand(budget, expected):
    assert fill_bins([2, 8, 2, 7, 1], budget) == expected
