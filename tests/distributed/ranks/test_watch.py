"""One watch in a process of its own, and a second rank that the test plays."""

import pytest
from torch.distributed import TCPStore

from aepo_lightning.distributed.ranks import Board, Failure, Sign
from tests.support.commands import Command

LONG_S = 60
SCRIPT = """
import sys, time
from torch.distributed import TCPStore
from aepo_lightning.distributed.ranks import Board, RankWatch, WatchTimes
rank, port = int(sys.argv[1]), int(sys.argv[2])
watch = RankWatch(Board(TCPStore("127.0.0.1", port), rank, {world}), WatchTimes(poll_s=0.1, {times}))
watch.enter()
{work}
"""


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def start(store, rank=0, work="time.sleep(100)", times="", world=2):
    """A rank with a watch; leaving the block waits for it."""
    return Command("-c", SCRIPT.format(work=work, times=times, world=world), rank, store.port)


def played(store, monkeypatch, rank=1):
    """The page of a rank that this process plays, on a machine of its own."""
    monkeypatch.setattr("aepo_lightning.distributed.ranks.board.machine_id", lambda: "another machine")
    board = Board(store, rank, 2)
    board.introduce(Sign(beat=1))
    return board


def test_a_rank_ends_when_another_says_that_it_failed(store, monkeypatch):
    job = start(store)
    board = played(store, monkeypatch)
    board.post(Failure(rank=1, reason="it failed with ValueError: so", place="there", details="its traceback"))
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert "Rank 1 of 2 (there): it failed with ValueError: so" in errors
    assert "its traceback" in errors, "rank 1 writes to the terminal of another machine"
    assert board.wait_until_read(0.0)


@pytest.mark.slow
def test_a_rank_that_fails_before_all_have_met_speaks_for_itself_on_the_same_machine(store):
    job = start(store, world=3)
    board = Board(store, 1, 3)
    board.introduce(Sign(beat=1))
    board.post(Failure(rank=1, reason="it failed with ValueError: so", details="its traceback"))
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert "Rank 0 stops, because rank 1 cannot go on. Rank 1 of 3: it failed with ValueError: so" in errors
    assert "its traceback" not in errors


def test_a_rank_that_gives_no_sign_counts_as_lost(store, monkeypatch):
    job = start(store, times="dead_after_s=1.0")
    board = played(store, monkeypatch)
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert "Rank 1 of 2: it gave no sign for 1 s" in errors
    assert board.failure().rank == 1


def test_a_rank_that_is_through_may_go_and_is_not_waited_for(store, monkeypatch):
    job = start(store, times="dead_after_s=0.5", work="time.sleep(2); watch.leave(); print('through')")
    played(store, monkeypatch).show(Sign(beat=2, is_in=False))
    job.wait(LONG_S)
    assert (job.returncode, job.stdout, job.stderr) == (0, "through\n", "")


@pytest.mark.slow
def test_no_progress_on_any_rank_ends_the_job_and_shows_who_does_not_wait(store, monkeypatch):
    job = start(store, times="stall_after_s=2.0")
    board = played(store, monkeypatch)
    board.tell_place('File ".../torch/distributed/distributed_c10d.py", line 1, in barrier')
    for beat in range(2, 1000):
        board.show(Sign(beat=beat))
        if board.failure() is not None:
            break
        board.wait_until_read(0.05)
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert board.failure().rank == 0, "rank 1 stands in a collective, which is not its fault"
    assert "no rank has finished anything for 2 s" in errors
    assert 'File "<string>"' in errors, "where rank 0 stands"


@pytest.mark.slow
def test_progress_on_one_rank_keeps_the_job_alive(store, monkeypatch):
    work = "from aepo_lightning.distributed.ranks import tick\n"
    work += "for _ in range(60):\n    time.sleep(0.1)\n    tick()\nwatch.leave()"
    job = start(store, times="stall_after_s=5.0, dead_after_s=100.0", work=work)
    played(store, monkeypatch).show(Sign(beat=2, ticks=0, is_in=False))
    errors = job.wait(LONG_S).stderr
    assert (job.returncode, errors) == (0, "")


FAILING = "try:\n    {}\nexcept Exception as error:\n    watch.end(error)"


def test_a_rank_that_fails_tells_the_others_its_own_error_and_shows_it(store, monkeypatch):
    job = start(store, work=FAILING.format("1 / 0"))
    board = played(store, monkeypatch)
    board.acknowledge()
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert "it failed with ZeroDivisionError: division by zero. The job ends." in errors
    assert errors.count("Traceback") == 1
    assert board.failure().reason == "it failed with ZeroDivisionError: division by zero"


def test_errors_of_this_library_need_no_traceback(store, monkeypatch):
    work = "from aepo_lightning.errors import TrainingError\n" + FAILING.format("raise TrainingError('so')")
    job = start(store, work=work)
    board = played(store, monkeypatch)
    board.acknowledge()
    errors = job.wait(LONG_S).stderr
    assert "TrainingError: so" in errors
    assert "Traceback" not in errors


def test_a_failed_collective_is_the_effect_of_what_another_rank_says(store, monkeypatch):
    job = start(store, work=FAILING.format("raise RuntimeError('gloo: connection closed by peer')"))
    board = played(store, monkeypatch)
    board.post(Failure(rank=1, reason="it failed with ValueError: the cause"))
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert "the cause" in errors
    assert "gloo" not in errors


def test_the_store_that_goes_with_rank_zero_ends_the_others(monkeypatch):
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = start(server, rank=1)
    played(server, monkeypatch, rank=0).show(Sign(beat=2))
    board = Board(server, 0, 2)
    while not board.has_met_all():
        board.wait_until_read(0.05)
    board.wait_until_read(0.5)
    del board, server
    errors = job.wait(LONG_S).stderr
    assert job.returncode == 1
    assert "the store of the process group, which it holds, is gone" in errors
