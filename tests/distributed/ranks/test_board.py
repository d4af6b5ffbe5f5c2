import pytest
from torch.distributed import HashStore

from aepo_lightning.distributed.ranks import Board, Failure, Sign


@pytest.fixture
def boards():
    store = HashStore()
    return [Board(store, rank, 2) for rank in range(2)]


def test_the_first_failure_stands_for_every_rank(boards):
    assert boards[0].failure() is None
    first = Failure(rank=1, reason="it failed", place="here", details="a\ntraceback")
    assert boards[1].post(first) == first
    assert boards[0].post(Failure(rank=0, reason="an effect of it")) == first
    assert boards[0].failure() == first


def test_ranks_see_each_other_when_all_have_come(boards):
    boards[0].introduce(Sign(is_in=False))
    assert not boards[0].has_met_all()
    boards[1].introduce(Sign(beat=3, ticks=2))
    assert boards[0].has_met_all()
    assert boards[0].signs([1]) == {1: Sign(beat=3, ticks=2)}
    # Both boards live in this process, hence on this machine.
    assert boards[0].neighbours(boards[0].others).keys() == {1}


def test_a_failure_counts_as_read_when_every_other_rank_has_said_so(boards):
    assert not boards[0].wait_until_read(0.0)
    assert boards[0].wait_until_read(0.0, without=1)
    boards[1].acknowledge()
    assert boards[0].wait_until_read(0.0)


def test_places_come_from_those_who_answer(boards):
    assert not boards[1].is_asked_for_place()
    assert boards[0].ask_places("own place", 0.0) == {0: "own place"}
    assert boards[1].is_asked_for_place()
    boards[1].tell_place("other place")
    assert boards[0].ask_places("own place", 0.0) == {0: "own place", 1: "other place"}
