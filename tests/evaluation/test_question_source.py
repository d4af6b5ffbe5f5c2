"""Where benchmarks are read: known files by their digest, missing ones, tables, and a Hub that may not answer."""

import json
import logging
import sys
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.evaluation.question_rows import QuestionRows
from aepo_lightning.evaluation.question_source import HubDataset, KnownFile, PublishedQuestions

ROWS = [{"question": "2 + 2?", "answer": "4"}, {"question": "3 + 3?", "answer": ["6", "six"]}]
HUB = HubDataset(dataset_id="somebody/tiny", split="test", revision="abc", is_gated=True)


def source(tmp_path, path="tiny.jsonl", **others):
    known = {name: others.pop(name) for name in ("sha256", "num_rows") if name in others}
    files = [KnownFile(path=path, url="https://example.org/tiny", **known)]
    return PublishedQuestions(
        files=files, licence="MIT", homepage="https://example.org", data_dir=str(tmp_path), **others
    )


def written(tmp_path, rows=ROWS):
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "tiny.jsonl").write_bytes(raw)
    return sha256(raw).hexdigest()


def test_a_known_file_says_so(tmp_path):
    digest = written(tmp_path)
    found = source(tmp_path, sha256=digest, num_rows=2).read("tiny")
    assert [question.answers for question in found.questions] == [("4",), ("6", "six")]
    assert (found.origin, found.sha256, found.is_known) == (str(tmp_path / "tiny.jsonl"), digest, True)
    assert not source(tmp_path).read("tiny").is_known


def test_questions_are_the_same_wherever_the_file_lies(tmp_path):
    read = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        written(folder)
        read.append(source(folder).read("tiny").questions)
    assert read[0] == read[1]


def test_another_version_is_refused_with_both_digests_unless_it_is_wanted(tmp_path, caplog):
    digest = written(tmp_path)
    with pytest.raises(DataError, match=f"known version of tiny, SHA-256 {'0' * 64}, but has {digest}.*allow_other"):
        source(tmp_path, sha256="0" * 64).read("tiny")
    with pytest.raises(DataError, match="must have 3 rows, but has 2"):
        source(tmp_path, num_rows=3).read("tiny")
    with caplog.at_level(logging.WARNING):
        found = source(tmp_path, sha256="0" * 64, num_rows=3, allow_other_version=True).read("tiny")
    assert (len(found.questions), found.is_known, found.is_other_version) == (2, False, True)
    assert f"{tmp_path / 'tiny.jsonl'} is another version of tiny: its numbers are not comparable" in caplog.text
    assert source(tmp_path, num_rows=3, allow_other_version=True).read("tiny").is_other_version
    known = source(tmp_path, sha256=digest, num_rows=2, allow_other_version=True)
    assert not known.read("tiny").is_other_version


def test_a_missing_file_says_where_it_belongs_and_where_it_comes_from(tmp_path):
    with pytest.raises(DataError) as caught:
        source(tmp_path, hub=HUB, note="Ask first.").read("tiny")
    told = str(caught.value)
    assert f"there is no {tmp_path / 'tiny.jsonl'}" in told
    assert "Put tiny.jsonl from https://example.org/tiny into the folder that AEPO_DATA_DIR names." in told
    assert told.endswith("`fetch=missing` streams somebody/tiny from the Hugging Face Hub. Ask first.")


def test_the_first_file_that_is_there_is_read(tmp_path):
    written(tmp_path)
    files = [KnownFile(path=path, url="u") for path in ("absent.csv", "tiny.jsonl", "later.jsonl")]
    several = PublishedQuestions(files=files, licence="MIT", homepage="h", data_dir=str(tmp_path))
    assert several.read("tiny").origin.endswith("tiny.jsonl")


@pytest.mark.parametrize("name, text", [
    ("t.csv", '\ufeffquestion,answer\r\n"2, 2 or ""two""?",4\r\n'),
    ("t.tsv", 'question\tanswer\n"2, 2 or ""two""?"\t4\n'),
    ("t.json", '[{"question": "2, 2 or \\"two\\"?", "answer": 4}]'),
])  # fmt: skip
def test_the_ending_says_how_a_file_is_read(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    (question,) = source(tmp_path, name).read("tiny").questions
    assert (question.messages[0].content, question.answers) == ('2, 2 or "two"?', ("4",))


def test_of_a_parquet_file_only_what_is_looked_at_is_read(tmp_path):
    pq.write_table(pa.table({"q": ["a?"], "info": [{"gold": "b"}], "image": [b"x" * 9]}), tmp_path / "t.parquet")
    rows = QuestionRows(question_fields=["question", "q"], answer_fields=["info.gold"])
    (question,) = source(tmp_path, "t.parquet", rows=rows).read("tiny").questions
    assert question.answers == ("b",)


@pytest.mark.parametrize("name, raw, told", [
    ("t.csv", b"question,answer\na,b,c\n", "t.csv, line 2 must have one value for each of"),
    ("t.csv", b'question,answer\n"a"b,c\n', "t.csv, line 2 must be a row of a table"),
    ("t.tsv", b"question\tanswer\n\xff\tb\n", "t.tsv must be UTF-8"),
    ("t.tsv", b"question\tanswer\na\n", "t.tsv, line 2 must have a field `answer`"),
    ("t.jsonl", b'{"question": "a"\n', "t.jsonl, line 1 must be one JSON object"),
])  # fmt: skip
def test_a_broken_file_is_named_with_its_line(tmp_path, name, raw, told):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=told):
        source(tmp_path, name).read("tiny")


class Stream(list):
    def __init__(self, rows, column_names=None):
        super().__init__(rows)
        self.column_names = column_names

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self]


def install(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


def test_the_hub_is_streamed_at_the_pinned_revision(tmp_path, monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return Stream([{**row, "image": b"large"} for row in ROWS], ["image", "question", "answer"])

    install(monkeypatch, load)
    found = source(tmp_path, hub=HUB, fetch="missing").read("tiny")
    assert asked == [(("somebody/tiny", None), {"split": "test", "revision": "abc", "streaming": True})]
    assert (found.origin, found.is_known, len(found.questions)) == ("somebody/tiny@abc, test", False, 2)
    written(tmp_path, ROWS[:1])
    assert len(source(tmp_path, hub=HUB, fetch="missing").read("tiny").questions) == 1  # the file that is there
    assert len(source(tmp_path, hub=HUB, fetch="always").read("tiny").questions) == 2


def test_other_questions_than_those_of_the_first_file_are_marked_wherever_they_come_from(tmp_path, monkeypatch, caplog):
    install(monkeypatch, lambda *_, **__: Stream(ROWS))
    for number in (2, 3):
        hub = source(tmp_path, hub=HUB, fetch="always", num_rows=number, note="Those are all of them.")
        assert hub.read("tiny").is_other_version == (number == 3)
    written(tmp_path)
    files = [KnownFile(path=path, url="u", num_rows=rows) for path, rows in (("absent.jsonl", 1), ("tiny.jsonl", 2))]
    found = PublishedQuestions(files=files, licence="MIT", homepage="h", data_dir=str(tmp_path)).read("tiny")
    assert found.is_other_version
    told = replace(HUB, is_other=True), replace(files[1], is_other=True)
    assert source(tmp_path, hub=told[0], fetch="always").read("tiny").is_other_version
    assert replace(source(tmp_path), files=told[1:]).read("tiny").is_other_version
    assert "somebody/tiny@abc, test is another version of tiny: its numbers are not comparable. Those" in caplog.text


def always(dataset_id, config, **options):
    assert (dataset_id, config, options["revision"]) == ("somebody/tiny", None, None)
    return Stream(ROWS)


def test_a_revision_that_is_not_pinned_is_said(tmp_path, monkeypatch, caplog):
    install(monkeypatch, always)
    hub = HubDataset(dataset_id="somebody/tiny", split="test")
    with caplog.at_level(logging.WARNING):
        assert source(tmp_path, hub=hub, fetch="always").read("tiny").origin == "somebody/tiny@main, test"
    assert "no pinned revision" in caplog.text


class DatasetGenerationError(Exception):
    """As `datasets` raises it: neither a `ValueError` nor an `OSError`."""


@pytest.mark.parametrize("error", [ConnectionError("no route"), DatasetGenerationError("no route"), KeyError("split")])
def test_a_gated_dataset_and_whatever_else_goes_wrong_there_say_what_to_do(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    install(monkeypatch, refuse)
    told = rf"The Hub must give somebody/tiny at abc, but it failed: {type(error).__name__}.*(no route|split).*gated"
    with pytest.raises(DataError, match=told):
        source(tmp_path, hub=HUB, fetch="always").read("tiny")


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the package `datasets`, but it is not installed"):
        source(tmp_path, hub=HUB, fetch="always").read("tiny")


def test_fetching_needs_a_place_to_fetch_from(tmp_path, without_type_checks):
    with pytest.raises(ConfigError, match="`fetch` must be never or missing where no `hub` is known"):
        source(tmp_path, fetch="always")
    with pytest.raises(ConfigError, match="`fetch` must be one of never, missing, always, but got 'now'"):
        source(tmp_path, fetch="now")
