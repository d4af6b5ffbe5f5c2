"""Pages as files, and from a server on this machine."""

import http.client
import json
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import pytest

from aepo_lightning.app.saved_trees import rollout_files
from aepo_lightning.app.view.command import main, relive, write_pages
from aepo_lightning.app.view.server import HOST, open_server
from aepo_lightning.app.view.updates import Relived
from aepo_lightning.contracts.generation import FinishReason, Generation
from aepo_lightning.contracts.tool import ToolCall, ToolResult
from aepo_lightning.errors import ConfigError
from aepo_lightning.policy.tokenizers import build_byte_tokenizer
from aepo_lightning.rollout import RolloutJournal
from aepo_lightning.rollout.record import call_event, generation_event
from tests.support.builders import make_question
from tests.support.viewed import data_of, large_tree, opened

TOKENIZER = build_byte_tokenizer()


def add_tree(folder, name, number):
    tree = large_tree(number, TOKENIZER, num_leaves=2, num_tokens=4)
    RolloutJournal(folder / "rollouts").append(name, tree)


@pytest.fixture
def folder(tmp_path):
    """Two iterations on two ranks, the second with a round of dynamic sampling."""
    names = ["train-00000-rank0", "train-00000-rank1", "train-00001-rank0", "train-00001-rank0-round1"]
    for number, name in enumerate(names):
        add_tree(tmp_path, name, number)
    (tmp_path / "rollouts" / "train-00002-rank0.steps.jsonl").write_text("")
    return tmp_path


def test_files_of_ranks_and_rounds_are_one_page(folder, monkeypatch):
    assert [(each.name, len(each.paths)) for each in rollout_files(folder)] == [("train-00000", 2), ("train-00001", 2)]
    view = "aepo_lightning.app.view.command.OpenedFolder.open"
    monkeypatch.setattr(view, lambda path, _: opened(path, TOKENIZER))
    pages = write_pages(folder)
    assert [page.relative_to(folder).as_posix() for page in pages] == ["view/train-00000.html", "view/train-00001.html"]
    data = data_of(pages[1].read_text(encoding="utf-8"))
    assert [row["id"] for row in data["head"]["questions"]] == ["q2", "q3"]
    assert write_pages(folder, folder / "out", ["train-00001"]) == [folder / "out" / "train-00001.html"]
    with pytest.raises(ConfigError, match=r"`--name` must be one of train-00000, train-00001, but got 'train-7'"):
        write_pages(folder, names=["train-7"])


def test_what_was_made_again_is_told_of_each_iteration_that_was_asked_for(folder, monkeypatch):
    done = {"train-00000": Relived(num_steps=2, num_trees=8, problem="")}
    done["train-00001"] = Relived(num_steps=1, num_trees=4, problem="There is no checkpoint.")
    monkeypatch.setattr("aepo_lightning.app.view.command.relive_updates", lambda *words: done[words[1]])
    first, second = relive(folder)
    assert first == "train-00000: 2 optimiser steps made again, over 8 questions."
    assert second.endswith(
        "1 optimiser steps made again, over 4 questions. The others were not: There is no checkpoint."
    )
    assert list(relive(folder, ["train-00001"])) == [second]
    add_tree(folder, "train-00002-rank0", 5)
    *_, third = relive(folder)
    assert third.startswith("train-00002: not made again. The rollout of an iteration must be over")
    with pytest.raises(ConfigError, match="but that of train-00002 goes on, or was cut off"):
        list(relive(folder, ["train-00002"]))


def test_a_folder_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="must be named"):
        main([str(tmp_path)])
    (tmp_path / "rollouts").mkdir()
    with pytest.raises(ConfigError, match="must hold finished rollouts"):
        rollout_files(tmp_path)


@contextmanager
def served(folder):
    """A server; yields what asks it."""
    server = open_server(opened(folder, TOKENIZER), 0)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def ask(path, host=None):
        connection = http.client.HTTPConnection(HOST, server.server_port, timeout=30)
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers, text

    try:
        yield ask
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_server_shows_what_a_run_has_by_then(folder):
    with served(folder) as ask:
        status, headers, _ = ask("/")
        assert (status, headers["Location"]) == (302, "/train-00002.html")
        before = {each["name"]: each["version"] for each in json.loads(ask("/rollouts.json")[2])}
        status, headers, page = ask("/train-00001.html")
        assert status == 200
        assert headers["X-Content-Type-Options"] == "nosniff"
        head = data_of(page)["head"]
        assert head["live"] == {"name": "train-00001", "version": before["train-00001"]}
        add_tree(folder, "train-00001-rank0", 7)
        after = {each["name"]: each["version"] for each in json.loads(ask("/rollouts.json")[2])}
        assert after["train-00000"] == before["train-00000"]
        assert after["train-00001"] != before["train-00001"]
        assert len(data_of(ask("/train-00001.html")[2])["head"]["questions"]) == len(head["questions"]) + 1


def test_the_server_shows_trees_that_grow_beside_those_that_are_finished(folder):
    grown = RolloutJournal(folder / "rollouts")
    known, other = (make_question(question_id) for question_id in ("q9", "q5"))
    with served(folder) as ask:
        before = ask("/rollouts.json")[2]
        with grown.open("train-00002-rank0", 5, "", {"q9": "d", "q5": "d"}) as session:
            for question in (known, other):
                put = session.sink(question)
                generation = Generation(
                    token_ids=[70, 71], logprobs=[-0.5, -1.0], entropies=[0.5, 0.25], finish_reason=FinishReason.STOP
                )
                put(generation_event(("r", 0), 0, generation))
                put(call_event(("r", 0), 0, ToolCall(tool="search", text="x"), ToolResult(text="found")))
            assert ask("/rollouts.json")[2] != before
            data = data_of(ask("/train-00002.html")[2])
            assert [(row["id"], row["unfinished"], row["failures"]) for row in data["head"]["questions"]] == [
                ("q9", True, 0),
                ("q5", True, 0),
            ]
            tree = data["piece-0"][0]
            assert [segment["source"] for segment in tree["segments"]] == ["prompt", "policy", "tool"]
            assert tree["messages"] == [[message.role, message.content] for message in known.messages]
            assert tree["segments"][2]["result"]["text"] == "found"
            assert [leaf["stop"] for leaf in tree["leaves"]] == ["unfinished"]
            add_tree(folder, "train-00002-rank0", 5)
            rows = data_of(ask("/train-00002.html")[2])["head"]["questions"]
            assert [(row["id"], row.get("unfinished", False)) for row in rows] == [("q5", False), ("q9", True)]


def test_a_run_in_which_nothing_has_begun_is_waited_for(tmp_path):
    with served(tmp_path) as ask:
        status, _, page = ask("/")
        assert status == 200
        assert "looks again" in page
        assert ask("/rollouts.json")[2] == "[]"


@pytest.mark.parametrize("path", ["/train-00009.html", "/../pyproject.toml", "/%2e%2e/x.html", "/rollouts"])
def test_the_server_has_no_other_pages(folder, path):
    with served(folder) as ask:
        assert ask(path)[0] == 404


def test_the_server_answers_to_names_of_this_machine_only(folder):
    with served(folder) as ask:
        assert ask("/rollouts.json", "evil.example:80")[0] == 403
        assert ask("/rollouts.json", "localhost.evil.example:80")[0] == 403
        assert ask("/rollouts.json", "localhost:1")[0] == 200
        assert ask("/rollouts.json", HOST)[0] == 200, "as a browser asks on port 80"


def test_a_port_that_is_taken_is_named(folder):
    with open_server(opened(folder), 0) as server, pytest.raises(ConfigError, match="`--port` must be free"):
        open_server(replace(opened(folder)), server.server_port)
