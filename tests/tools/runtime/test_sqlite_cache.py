"""The cache file: shared by processes, bounded, and whole after a kill."""

import json
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from aepo_lightning.contracts.tool import ToolResult, ToolStatus
from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tools import SQLiteCache, ToolCache, import_official_cache
from aepo_lightning.tools.runtime import answer_file, answer_writer
from tests.support.commands import WARM


def text(value):
    return ToolResult(status=ToolStatus.OK, text=value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "cache.sqlite"


@pytest.fixture
def cache(path):
    cache = SQLiteCache(path)
    yield cache
    cache.close()


def test_it_is_a_tool_cache(cache):
    assert isinstance(cache, ToolCache)


@pytest.mark.parametrize(
    "value", ["", "x", "é\n\0", "\udcff", "y" * 1_000_000], ids=["empty", "x", "odd", "half", "long"]
)
def test_what_is_kept_is_read_at_once_and_after_reopening(cache, path, value):
    answer = ToolResult(status=ToolStatus.EMPTY, text=value)
    assert cache.get("k") is None
    cache.put("k", "search", answer, None)
    assert cache.get("k") == answer
    cache.close()
    assert SQLiteCache(path).get("k") == answer
    assert cache.get("k") == answer  # a closed cache opens again


def test_the_newest_answer_counts(cache):
    for value in "abc":
        cache.put("k", "search", text(value), None)
    cache.flush()
    assert cache.get("k") == text("c")


def test_answers_expire_before_and_after_they_are_written(path):
    now = [100.0]
    cache = SQLiteCache(path, clock=lambda: now[0])
    cache.put("k", "search", text("a"), 10.0)
    now[0] = 109.9
    assert cache.get("k") == text("a")
    cache.flush()
    assert cache.get("k") == text("a")
    now[0] = 110.0
    assert cache.get("k") is None
    cache.put("j", "search", text("b"), None)
    cache.close()
    assert cache.counts() == {"search": 1}  # what has expired was removed


def test_beyond_the_bound_the_oldest_go(path):
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    cache = SQLiteCache(path, max_mb=0.02, clock=clock)
    for number in range(40):
        cache.put(f"k{number:02}", "search", text(os.urandom(500).hex()), None)
        cache.flush()
    cache.close()
    kept = [number for number in range(40) if cache.get(f"k{number:02}") is not None]
    assert kept == list(range(40 - len(kept), 40))
    assert 15 <= len(kept) <= 36  # 20 KiB of rows of about 570 bytes


def test_the_bound_holds_while_a_run_goes_on(path):
    cache = SQLiteCache(path, max_mb=1.0)
    for number in range(60):
        cache.put(f"k{number}", "search", text(os.urandom(50_000).hex()), None)
        cache.flush()
    with sqlite3.connect(path) as connection:
        (size,) = connection.execute("SELECT SUM(size) FROM answers").fetchone()
    connection.close()
    cache.close()
    assert size <= 1.1 * 2**20  # 3 MB were written; it may go beyond the bound by the tenth after which it is looked at


@pytest.mark.parametrize("column", ["body = x'00'", "status = 'nonsense'"], ids=["body", "status"])
def test_an_answer_that_cannot_be_read_counts_as_none(cache, path, caplog, column):
    for key in "ab":
        cache.put(key, "search", text("x"), None)
    cache.flush()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE answers SET {column}")
    connection.close()
    assert (cache.get("a"), cache.get("b")) == (None, None)
    assert caplog.text.count("so tools are asked again") == 1
    cache.put("a", "search", text("y"), None)
    cache.flush()
    assert cache.get("a") == text("y")


def test_threads_that_keep_and_close_at_the_same_time_neither_hang_nor_lose_anything(cache):
    def keep(thread):
        for number in range(50):
            cache.put(f"{thread}-{number}", "search", text("x"), None)
            cache.flush() if number % 2 else cache.close()

    threads = [threading.Thread(target=keep, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert cache.counts() == {"search": 200}


def test_a_tool_can_be_forgotten(cache):
    cache.put("a", "search", text("x"), None)
    cache.put("b", "browse", text("y"), None)
    assert cache.forget("search") == 1
    assert cache.counts() == {"browse": 1}
    assert cache.get("a") is None


def test_a_read_only_cache_answers_and_keeps_nothing(cache, path, tmp_path):
    cache.put("k", "search", text("a"), None)
    cache.flush()
    frozen = SQLiteCache(path, is_read_only=True)
    frozen.put("j", "search", text("b"), None)
    assert (frozen.get("k"), frozen.get("j")) == (text("a"), None)
    assert SQLiteCache(tmp_path / "none.sqlite", is_read_only=True).get("k") is None
    assert not (tmp_path / "none.sqlite").exists()


def fill(path, first, number):
    cache = SQLiteCache(path)
    for index in range(first, first + number):
        cache.put(f"k{index}", "search", text(f"v{index}"), None)
    cache.close()


@pytest.mark.slow
def test_processes_share_one_file(path):
    processes = [WARM.Process(target=fill, args=(path, 200 * rank, 200)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    cache = SQLiteCache(path)
    assert all(cache.get(f"k{index}") == text(f"v{index}") for index in range(600))


def fill_for_ever(path, written):
    cache = SQLiteCache(path)
    index = 0
    while True:
        cache.put(f"k{index}", "search", text(f"v{index}" * 200), None)
        if index % 50 == 49:
            cache.flush()
            written.value = index + 1
        index += 1


def test_a_kill_in_mid_write_loses_nothing_that_was_written(path):
    written = WARM.Value("i", 0)
    for _ in range(3):
        process = WARM.Process(target=fill_for_ever, args=(path, written))
        process.start()
        before = written.value
        deadline = time.monotonic() + 60
        while written.value in (before, 0) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cache = SQLiteCache(path)
        assert written.value > 0
        assert all(cache.get(f"k{index}") == text(f"v{index}" * 200) for index in range(written.value))
        cache.close()
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_forked_child_opens_its_own(cache):
    cache.put("k", "search", text("a"), None)
    cache.flush()
    assert cache.get("k") == text("a")
    reader = cache._reader
    pid = os.fork()
    if not pid:  # the child
        cache.put("j", "search", text("b"), None)
        cache.flush()
        is_sound = cache.get("k") == text("a") and cache._reader is not reader
        os._exit(0 if is_sound else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert cache.get("j") == text("b")


def spoil_header(path):
    path.write_text("x" * 5000)


def spoil_format(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 7")


def truncate(path):
    path.write_bytes(path.read_bytes()[:1024])


def hide(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [spoil_header, spoil_format, truncate, hide])
def test_a_spoilt_file_costs_one_warning_and_no_call(cache, path, caplog, spoil):
    cache.put("k", "search", text("a"), None)
    cache.close()
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    for key in "kkj":
        assert cache.get(key) is None
        cache.put(key, "search", text("b"), None)
        cache.flush()
    assert caplog.text.count("so tools are asked again") == 1
    cache.close()
    assert not path.is_file() or path.read_bytes() == before
    with pytest.raises(DataError, match="must be a cache of"):
        cache.counts()


def test_a_file_that_another_process_holds_is_not_waited_for(cache, path):
    cache.put("k", "search", text("a"), None)
    cache.close()
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        assert cache.get("k") is None
        assert time.monotonic() - started < 8.0  # a lock is waited for where nobody else waits
    assert cache.get("k") == text("a")


@pytest.mark.parametrize("error", [sqlite3.OperationalError("database or disk is full"), OSError("gone"), KeyError(1)])
def test_a_disk_that_was_full_is_written_to_again(path, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    cache = SQLiteCache(path, retry_s=0.0)
    monkeypatch.setattr(answer_writer, "write_rows", fail)
    for key in "kl":
        cache.put(key, "search", text("a"), None)
        cache.flush()
        assert cache.get(key) is None
    monkeypatch.undo()
    cache.put("j", "search", text("b"), None)
    cache.close()
    assert (cache.get("j"), cache.get("k")) == (text("b"), None)
    assert caplog.text.count("so tools are asked again") == 1


def test_a_file_that_failed_is_left_alone_for_a_while(path):
    path.mkdir(parents=True)
    cache = SQLiteCache(path, retry_s=3600.0)
    cache.put("k", "search", text("a"), None)
    cache.flush()
    path.rmdir()
    cache.put("k", "search", text("a"), None)
    cache.close()
    assert not path.exists()


def test_a_writer_that_dies_is_not_waited_for_and_replaced(path, monkeypatch):
    class Death(BaseException):
        pass

    def die(*_):
        raise Death

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(answer_writer, "write_rows", die)
    cache = SQLiteCache(path)
    cache.put("k", "search", text("a"), None)
    cache.flush()
    cache.close()
    monkeypatch.setattr(answer_writer, "_next_batch", die)  # before it can say that it is done
    cache.put("k", "search", text("a"), None)
    cache.flush()
    monkeypatch.undo()
    cache.put("k", "search", text("b"), None)
    cache.flush()
    assert cache.get("k") == text("b")
    cache.close()
    assert SQLiteCache(path).get("k") == text("b"), "another thread wrote it"


def test_a_file_that_cannot_be_read_is_left_alone_for_a_while(cache, path):
    path.mkdir(parents=True)
    waiting, eager = SQLiteCache(path, retry_s=3600.0), SQLiteCache(path, retry_s=0.0)
    assert (waiting.get("k"), eager.get("k")) == (None, None)
    path.rmdir()
    cache.put("k", "search", text("a"), None)
    cache.close()
    assert (waiting.get("k"), eager.get("k")) == (None, text("a"))
    eager.close()


def test_a_file_that_failed_is_opened_anew(path, monkeypatch):
    cache = SQLiteCache(path, retry_s=0.0)
    cache.put("k", "search", text("a"), None)
    cache.flush()
    with monkeypatch.context() as patch:
        patch.setattr(answer_writer, "write_rows", lambda *_: 1 / 0)
        cache.put("k", "search", text("b"), None)
        cache.flush()
    path.unlink()
    cache.put("j", "search", text("c"), None)
    cache.close()
    assert path.exists()


def test_an_answer_that_waits_to_be_written_expires_too(path, monkeypatch):
    monkeypatch.setattr(answer_writer.AnswerWriter, "put", lambda *_: None)
    now = [100.0]
    cache = SQLiteCache(path, clock=lambda: now[0])
    cache.put("k", "search", text("a"), 10.0)
    assert cache.get("k") == text("a")
    now[0] = 110.0
    assert cache.get("k") is None


def test_an_answer_that_would_fill_the_memory_counts_as_none(cache, path, monkeypatch):
    cache.put("k", "search", text("a" * 1000), None)
    cache.flush()
    monkeypatch.setattr(answer_file, "_MAX_TEXT_BYTES", 999)
    assert cache.get("k") is None


@pytest.mark.parametrize(("name", "value"), [("max_mb", 0.0), ("retry_s", -1.0)])
def test_a_number_without_meaning_is_refused(path, name, value):
    with pytest.raises(ConfigError, match=f"`{name}` must"):
        SQLiteCache(path, **{name: value})


def test_the_official_cache_is_copied_without_its_failures(cache, tmp_path):
    official = tmp_path / "search_cache.json"
    official.write_text(json.dumps({"q": "Page 1: a", "r": "No search results found.", "s": " "}))
    assert import_official_cache(official, cache, "key {}".format, "search") == 1
    assert cache.get("key q") == text("Page 1: a")
    assert cache.get("key r") is None
