"""Offline search over files: built once, built again when something changed, never half built."""

import asyncio
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aepo_lightning.errors import DataError
from aepo_lightning.protocols import Tool
from aepo_lightning.tools import CorpusFields, CorpusIndex, IndexSearch, ToolRuntime
from aepo_lightning.types import ToolCall, ToolStatus
from tests.tools.parts import make_context

ROWS = [
    {"contents": "Paris lies on the Seine.", "title": "Paris", "link": "https://a"},
    {"contents": "Berlin lies on the Spree.", "title": "Berlin", "link": None},
    {"contents": "The Seine is long. The Seine is wide.", "title": "Rivers of France"},
]
FIELDS = CorpusFields(text="contents", title="title", url="link")


@pytest.fixture(params=["jsonl", "parquet"])
def file(request, tmp_path):
    path = tmp_path / f"corpus.{request.param}"
    write(path)
    return path


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def open_index(*files, folder=None, fields=FIELDS):
    return CorpusIndex(files, folder or files[0].parent / "index", fields, show_progress=False)


def titles(index, query, k=5):
    return [hit.title for hit in index.search(query, k)]


def test_the_best_documents_come_first_whatever_the_file(file):
    index = open_index(file)
    assert len(index) == 3
    assert titles(index, "Seine") == ["Rivers of France", "Paris"]
    assert titles(index, "berlin") == ["Berlin"]
    (hit,) = index.search("spree", 5)
    assert (hit.snippet, hit.url) == ("Berlin lies on the Spree.", "")
    assert titles(index, "lies", 1) in (["Paris"], ["Berlin"])


@pytest.mark.parametrize("query", ['"', "AND", "(", "-", "x:y", "title:", "a:b", "*", "[1 TO 2]", "\\", "", " ", "?!"])
def test_no_query_is_a_mistake(file, query):
    assert isinstance(open_index(file).search(query, 5), list)


def test_it_is_built_once_and_again_when_the_file_or_the_fields_change(file):
    open_index(file)
    stamp = (file.parent / "index" / "corpus.json").stat().st_mtime_ns
    open_index(file)
    assert (file.parent / "index" / "corpus.json").stat().st_mtime_ns == stamp
    write(file, [*ROWS, {"contents": "Rome lies on the Tiber.", "title": "Rome", "link": "x"}])
    os.utime(file, ns=(1, 1))
    assert titles(open_index(file), "tiber") == ["Rome"]
    assert titles(open_index(file, fields=CorpusFields(text="title")), "tiber") == []


def test_several_files_are_one_corpus(tmp_path):
    for name, rows in (("a.jsonl", ROWS[:1]), ("b.parquet", ROWS[1:])):
        write(tmp_path / name, rows)
    assert len(open_index(tmp_path / "a.jsonl", tmp_path / "b.parquet")) == 3


def test_a_build_that_fails_leaves_the_index_before_it(tmp_path):
    path = tmp_path / "corpus.jsonl"
    write(path)
    open_index(path)
    path.write_text('{"contents": "fine"}\n{broken\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 2 must be JSON"):
        open_index(path)
    write(path)
    assert len(open_index(path)) == 3
    assert sorted(each.name for each in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('["list"]', "line 1 must be an object, but got list"),
        ('{"other": 1}', "row 1: `contents` must be text, but got None"),
        ('{"contents": 5}', "row 1: `contents` must be text, but got 5"),
    ],
)
def test_a_row_that_is_no_document_is_named(tmp_path, content, match):
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(DataError, match=match):
        open_index(tmp_path / "c.jsonl")


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not"):
        open_index(tmp_path / "none.jsonl")
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(DataError, match=r"must end in \.jsonl or \.parquet"):
        open_index(tmp_path / "c.txt")


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    write(tmp_path / "c.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds other things"):
        open_index(tmp_path / "c.jsonl", folder=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()


def test_the_tool_answers_in_both_styles(file):
    index = open_index(file)
    tool = IndexSearch(index=index, max_results=1)
    assert isinstance(tool, Tool)

    def ask(tool, query):
        return asyncio.run(ToolRuntime(tools=[tool]).call(ToolCall(tool="search", text=query), make_context()))

    assert ask(tool, "spree").text == "Page 1: Berlin lies on the Spree."
    assert ask(IndexSearch(index=index, style="structured"), "spree").text == "[1] Berlin\nBerlin lies on the Spree."
    nothing = ask(tool, "zebra")
    assert (nothing.status, nothing.text) == (ToolStatus.EMPTY, "No search results found.")
