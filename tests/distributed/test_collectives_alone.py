"""A single process reduces to itself. What several ranks do is in tests/distributed."""

import pytest

from aepo_lightning.distributed.collectives import all_gather, all_names, all_reduce, from_rank_zero, world_size


@pytest.mark.parametrize("op", ["sum", "max"])
def test_one_process_keeps_its_numbers_as_floats(op):
    found = all_reduce([3, -0.5, True], op)
    assert found == [3.0, -0.5, 1.0]
    assert all(type(value) is float for value in found)


def test_nothing_reduces_to_nothing():
    assert all_reduce([]) == []


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="`op` must be 'sum' or 'max', but got 'mean'"):
        all_reduce([1.0], "mean")


def test_one_process_keeps_its_names_once_and_sorted():
    assert all_names(["b", "a", "b"]) == ["a", "b"]


def test_without_a_process_group_there_is_one_rank():
    assert world_size() == 1


def test_one_process_gathers_its_own_value_and_is_rank_zero():
    assert all_gather({"rank": None}) == [{"rank": None}]
    assert from_rank_zero("own") == "own"
