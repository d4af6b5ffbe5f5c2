"""Seeds: stable for ever, and different wherever they are used."""

import itertools
import math

import pytest

from aepo_lightning.rollout import derive_seed, derive_uniform
from aepo_lightning.rollout.seeds import drawing_chain


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((), 8238016292129134938),
        ((0,), 6148773199958884930),
        ((0, "q", "r", 0, 0), 9020919300940477966),
        ((7, "trail-train-12", "r", 3, "b", 1, 0, 2), 7407913655671989469),
    ],
)
def test_seeds_never_change(path, expected):
    # Values of this function when it was written; changing them changes every run.
    assert derive_seed(*path) == expected


def test_seeds_are_in_range():
    seeds = [derive_seed(number, "x") for number in range(1_000)]
    assert min(seeds) >= 0
    assert max(seeds) < 1 << 63
    assert max(seeds) > 1 << 62


def test_no_two_paths_of_a_grid_share_a_seed():
    ids = ["q", "q1", "q/1", "1", "q/sr/i0", ""]
    origins = [("r", root) for root in range(4)] + [("p", 0)]
    branches = [(), *(("b", turn, index) for turn in range(1, 4) for index in range(2))]
    paths = {
        (seed, question, *origin, *branch, *deeper, turn)
        for seed, question, origin, branch, turn in itertools.product(range(3), ids, origins, branches, range(5))
        for deeper in ((), ("b", 4, 0))
    }
    assert len({derive_seed(*path) for path in paths}) == len(paths)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 2), (12,)),
        (("a", "b"), ("ab",)),
        (("a/sb",), ("a", "b")),
        ((1,), ("1",)),
        (("1:", 2), ("1", ":2")),
        ((), ("",)),
    ],
    ids=str,
)
def test_paths_that_read_alike_have_different_seeds(left, right):
    assert derive_seed(*left) != derive_seed(*right)


def test_derived_uniforms_are_uniform():
    number = 5_000
    ordered = sorted(derive_uniform("u", index) for index in range(number))
    assert ordered[0] >= 0
    assert ordered[-1] < 1
    distance = max(abs(value - (rank + 0.5) / number) for rank, value in enumerate(ordered)) + 0.5 / number
    assert distance < 1.95 / math.sqrt(number)  # Kolmogorov-Smirnov at 0.001


@pytest.mark.parametrize(
    ("path", "turn", "expected"),
    [
        (("r", 3), 0, ("r", 3)),
        (("r", 3, "b", 2, 1), 2, ("r", 3, "b", 2, 1)),
        (("r", 3, "b", 2, 1), 1, ("r", 3)),
        (("r", 3, "b", 2, 1, "b", 4, 0), 3, ("r", 3, "b", 2, 1)),
        (("r", 3, "b", 2, 1, "b", 4, 0), 0, ("r", 3)),
        (("r", 3, "again", 1), 0, ("r", 3, "again", 1)),
        (("r", 3, "b", 2, 1, "again", 1), 0, ("r", 3, "b", 2, 1, "again", 1)),
    ],
)
def test_what_a_branch_shares_with_its_trunk_was_drawn_by_the_trunk(path, turn, expected):
    assert drawing_chain(path, turn) == expected
