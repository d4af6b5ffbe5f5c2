"""Two ranks at work apart from each other, of which one is cut off: both learn of it, and none waits for the other."""

import asyncio
import os
import signal

import pytest
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from aepo_lightning.distributed.ranks import CalledBackError, WorkApart, apart, were_cut_off
from aepo_lightning.distributed.ranks.signals import EndTimes, ending_on_signals
from aepo_lightning.errors import EngineError, SignalExit
from aepo_lightning.event_loop import run_in_event_loop, stop_event_loops
from tests.support.ranks import run_ranks

LONG_S = 1000.0


def wait():
    run_in_event_loop(asyncio.sleep(LONG_S))


def fail():
    raise EngineError("no server is left")


def end():
    os.kill(os.getpid(), signal.SIGTERM)
    wait()


def nothing():
    pass


def stay():
    _get_default_store().wait(["the other has left"])


def outcome(work):
    """How a block of work ended on this rank, and whether all ranks were cut off in it."""
    try:
        with WorkApart(stop_event_loops):
            work()
    except (CalledBackError, EngineError, SignalExit) as error:
        return type(error).__name__, str(error), were_cut_off()
    return "done", "", were_cut_off()


def meetings(rank):
    """Every case in its turn: what rank 0 does, and what rank 1 does."""
    apart._LOOK_S = 0.05
    dist.init_process_group("gloo")
    cases = {
        "both are through": (nothing, nothing),
        "at work": (wait, fail),
        "waiting": (nothing, fail),
        "both fail": (fail, fail),
    }
    found = {name: outcome(pair[rank]) for name, pair in cases.items()}
    apart._PATIENCE_S = 0.1
    found["one does not come"] = outcome((stay, fail)[rank])
    if rank == 1:
        _get_default_store().set("the other has left", "")
    dist.barrier()
    apart._PATIENCE_S = 8.0
    with ending_on_signals(lambda *_: None, EndTimes(grace_s=LONG_S)):
        found["a signal to one"] = outcome((wait, end)[rank])
    dist.barrier()  # rank 0 holds the store
    return found


@pytest.fixture(scope="module")
def found():
    return run_ranks(meetings)


def test_nothing_happens_where_all_come_to_the_end(found):
    assert [each["both are through"] for each in found] == [("done", "", False)] * 2


@pytest.mark.parametrize("case", ["at work", "waiting"])
def test_a_rank_that_fails_calls_the_other_back_from_wherever_it_is(found, case):
    other, own = (each[case] for each in found)
    assert own == ("EngineError", "no server is left", True)
    assert (other[0], other[2]) == ("CalledBackError", True)
    assert "Rank 1 (" in other[1]
    assert "cannot go on: it failed with EngineError: no server is left" in other[1]


def test_ranks_that_fail_together_keep_their_own_errors(found):
    assert [each["both fail"] for each in found] == [("EngineError", "no server is left", True)] * 2


def test_where_one_does_not_come_in_time_nobody_counts_on_it(found):
    assert found[1]["one does not come"] == ("EngineError", "no server is left", False)


def test_a_signal_to_one_rank_is_one_to_all(found):
    assert [each["a signal to one"] for each in found] == [("SignalExit", "told to end by SIGTERM", True)] * 2


def test_one_process_is_cut_off_alone():
    assert outcome(fail) == ("EngineError", "no server is left", True)
    assert outcome(nothing) == ("done", "", False)
