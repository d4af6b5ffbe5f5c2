"""Verdicts are kept in a file that several processes share and that may fail without stopping anything."""

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from aepo_lightning.rewards.judge.reply import Judgement
from aepo_lightning.rewards.judge.store import VerdictStore
from aepo_lightning.rewards.judge.template import Ruling

YES = Judgement(ruling=Ruling.CORRECT, reason="same")
NO = Judgement(ruling=Ruling.INCORRECT, reason="other")


def put(store, key, judgement):
    return asyncio.run(store.put(key, "m", judgement))


def test_what_was_kept_is_found_again(tmp_path):
    path = tmp_path / "new" / "verdicts.sqlite"
    store = VerdictStore(path)
    assert store.get("k") is None
    assert put(store, "k", YES) == YES
    assert VerdictStore(path).get("k") == YES
    assert VerdictStore(path).get("other") is None


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "v.sqlite"
    code = """
import asyncio, sys
from aepo_lightning.rewards.judge.store import VerdictStore
from aepo_lightning.rewards.judge.reply import Judgement
from aepo_lightning.rewards.judge.template import Ruling
store = VerdictStore(sys.argv[1])
for index in range(100):
    for key in (f"{sys.argv[2]}-{index}", f"shared-{index}"):
        asyncio.run(store.put(key, "m", Judgement(ruling=Ruling.CORRECT, reason=sys.argv[2])))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), str(index)]) for index in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    store = VerdictStore(path)
    assert all(store.get(f"{index}-{each}") is not None for index in range(4) for each in range(100))
    assert all(store.get(f"shared-{each}") is not None for each in range(100))


def test_the_first_verdict_stays(tmp_path):
    first, second = (VerdictStore(tmp_path / "v.sqlite") for _ in range(2))
    assert second.get("k") is None
    put(first, "k", YES)
    assert put(second, "k", NO) == YES
    assert second.get("k") == YES


def test_without_a_path_verdicts_are_kept_in_memory():
    store = VerdictStore(None)
    assert put(store, "k", YES) == store.get("k") == YES


def test_a_store_made_after_the_first_look_is_found(tmp_path):
    early = VerdictStore(tmp_path / "v.sqlite")
    assert early.get("k") is None
    put(VerdictStore(tmp_path / "v.sqlite"), "k", NO)
    assert early.get("k") == NO


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_file_that_another_process_makes_at_the_moment_holds_nothing_yet(lock, tmp_path, caplog):
    path = tmp_path / "v.sqlite"
    store = VerdictStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as maker, caplog.at_level(logging.WARNING):
        maker.execute(lock)
        maker.execute("CREATE TABLE other (x)")
        assert store.get("k") is None
        maker.execute("ROLLBACK")
    assert not caplog.records
    put(VerdictStore(path), "k", YES)
    assert store.get("k") == YES


def is_no_database(path):
    path.write_text("<html>" * 100)


def is_a_folder(path):
    path.mkdir()


def has_another_format(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")


def has_an_unknown_ruling(path):
    put(VerdictStore(path), "k", YES)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE verdicts SET ruling = 'maybe'")


@pytest.mark.parametrize("spoil", [is_no_database, is_a_folder, has_another_format, has_an_unknown_ruling])
def test_a_file_that_cannot_be_used_is_named_once_and_stops_nothing(spoil, tmp_path, caplog):
    path = tmp_path / "v.sqlite"
    spoil(path)
    store = VerdictStore(path)
    with caplog.at_level(logging.WARNING):
        assert store.get("k") is None
        assert put(store, "k", NO) == NO
        assert store.get("k") == NO
        assert store.get("other") is None
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


def test_a_forked_child_opens_the_file_anew(tmp_path, monkeypatch):
    store = VerdictStore(tmp_path / "v.sqlite")
    put(VerdictStore(tmp_path / "v.sqlite"), "k", YES)
    store.get("other")
    reader = store._reader
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert store.get("k") == YES
    assert store._reader is not reader
    reader.close()
