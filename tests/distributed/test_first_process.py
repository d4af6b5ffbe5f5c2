import os
import threading

import pytest
from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.distributed.first_process import is_first_process, make_once
from aepo_lightning.errors import TrainingError


@pytest.fixture
def result(tmp_path):
    return tmp_path / "run" / "made" / "config.json"


def maker(result, calls):
    def make():
        calls.append({name for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS") if name in os.environ})
        result.parent.mkdir(parents=True)
        result.touch()

    return make


def as_rank(monkeypatch, rank):
    monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
    monkeypatch.delenv("NODE_RANK", raising=False)


def test_the_first_process_makes_it_once_and_sees_no_job(monkeypatch, result):
    as_rank(monkeypatch, 0)
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "2")
    calls = []
    make_once(result, maker(result, calls))
    make_once(result, maker(result, calls))
    assert calls == [set()]
    assert os.environ["WORLD_SIZE"] == "2"
    assert [path.name for path in result.parent.parent.iterdir()] == ["made"]


def test_another_process_waits_until_it_is_there(monkeypatch, result):
    as_rank(monkeypatch, 1)
    calls = []
    threading.Timer(0.2, maker(result, calls)).start()
    make_once(result, lambda: pytest.fail("a second process makes it too"), silent_s=60.0)
    assert result.is_file()


def test_what_is_there_but_is_not_the_one_that_is_wanted_is_made_again(monkeypatch, result):
    as_rank(monkeypatch, 0)
    result.parent.mkdir(parents=True)
    result.write_text("old")
    make_once(result, lambda: result.write_text("new"), is_sound=lambda: result.read_text() == "new")
    assert result.read_text() == "new"
    make_once(result, lambda: pytest.fail("it is there"), is_sound=lambda: result.read_text() == "new")


def test_another_process_waits_for_the_one_that_is_wanted(monkeypatch, result):
    as_rank(monkeypatch, 1)
    result.parent.mkdir(parents=True)
    result.write_text("old")
    threading.Timer(0.2, result.write_text, ["new"]).start()
    make_once(result, lambda: pytest.fail("a second process makes it"), 60.0, lambda: result.read_text() == "new")
    assert result.read_text() == "new"


def test_another_process_gives_up_when_the_first_one_is_gone(monkeypatch, result):
    as_rank(monkeypatch, 1)
    with pytest.raises(TrainingError, match=r"gave no sign for 0\.1 s"):
        make_once(result, lambda: None, silent_s=0.1)


def test_an_error_of_the_first_process_is_its_own_and_leaves_no_sign(monkeypatch, result):
    as_rank(monkeypatch, 0)
    with pytest.raises(ZeroDivisionError):
        make_once(result, lambda: 1 / 0)
    assert list(result.parent.parent.iterdir()) == []


def test_the_main_process_of_another_node_is_not_the_first(monkeypatch):
    as_rank(monkeypatch, 0)
    assert is_first_process()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_first_process()
