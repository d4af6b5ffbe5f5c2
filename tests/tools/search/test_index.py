"""Offline search over files: built once, built again when something changed, never half built."""

import asyncio
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aepo_lightning.contracts.tool import Tool, ToolCall, ToolStatus
from aepo_lightning.errors import DataError
from aepo_lightning.tools import CorpusFields, CorpusIndex, IndexSearch, ToolRuntime
from tests.support.commands import Command
from tests.support.tool_parts import make_context

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
    assert sorted(each.name for each in tmp_path.iterdir()) == [".index.lock", "corpus.jsonl", "index"]


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


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("c.jsonl", b"", "must hold a document"),
        ("c.jsonl", b"\n \n", "must hold a document"),
        ("c.jsonl", b'{"contents": "\xff"}', "line 1 must be JSON"),
        ("c.jsonl", b"[" * 100_000, "line 1 must be JSON"),
        ("c.jsonl", b'{"body": "x", "id": 1}', r"It has \['body', 'id'\]: set `fields.text`"),
        ("c.parquet", b"no parquet", "must be a whole parquet file"),
        ("c.parquet", b"", "must be a whole parquet file"),
    ],
    ids=["empty", "blank", "charset", "nested", "column", "no-parquet", "empty-parquet"],
)
def test_a_file_that_is_no_corpus_is_named(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        open_index(tmp_path / name)


def test_blank_lines_a_mark_at_the_start_and_half_pairs_are_no_problem(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"contents": "Seine \\ud800 long"}\n\n')
    assert open_index(path).search("seine", 1)[0].snippet == "Seine ? long"


@pytest.mark.parametrize("query", ["हिन्दी", "café", "日本語", "Привет", "\ud800", "\x00", "a" * 100_000], ids=ascii)
def test_words_of_every_script_are_found(tmp_path, query):
    path = tmp_path / "c.jsonl"
    write(path, [{"contents": "a हिन्दी b"}, {"contents": "a café"}, {"contents": "日本語"}, {"contents": "Привет, b"}])
    found = open_index(path).search(query, 5)
    assert [query in hit.snippet for hit in found] == ([True] if query.isprintable() and len(query) < 10 else [])


def test_processes_that_open_it_at_the_same_time_build_it_once(tmp_path):
    path = tmp_path / "c.jsonl"
    write(path, [{"contents": f"word{n}"} for n in range(20_000)])
    (tmp_path / "index.partial").mkdir()
    (tmp_path / "index.partial" / "left").touch()
    program = (
        "import sys; from aepo_lightning.tools import CorpusFields, CorpusIndex; "
        "index = CorpusIndex([sys.argv[1]], sys.argv[2], CorpusFields(text='contents'), show_progress=False); "
        "print(len(index), len(index.search('word7', 1)))"
    )
    builders = [Command("-c", program, path, tmp_path / "index") for _ in range(3)]
    assert [each.wait().stdout.strip() for each in builders] == ["20000 1"] * 3
    assert sorted(each.name for each in tmp_path.iterdir()) == [".index.lock", "c.jsonl", "index"]


def test_an_open_index_outlives_the_one_that_takes_its_place(tmp_path):
    path = tmp_path / "c.jsonl"
    write(path)
    first = open_index(path)
    write(path, ROWS[:1])
    os.utime(path, ns=(1, 1))
    second = open_index(path)
    assert titles(first, "spree") == ["Berlin"]
    assert titles(second, "spree") == []


def test_a_damaged_index_is_named(tmp_path):
    path = tmp_path / "c.jsonl"
    write(path)
    open_index(path)
    (tmp_path / "index" / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"must hold a whole index, but .* Remove it\."):
        open_index(path)


def test_another_corpus_or_style_is_another_version(tmp_path):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", ROWS[:2])
    one, other = (open_index(tmp_path / f"{name}.jsonl", folder=tmp_path / name) for name in "ab")
    tools = [IndexSearch(index=one), IndexSearch(index=other), IndexSearch(index=one, style="structured")]
    assert len({tool.spec.version for tool in tools}) == 3


@pytest.mark.parametrize("settings", [{"max_results": 0}, {"max_snippet_chars": 0}], ids=str)
def test_settings_without_meaning_are_refused(file, settings):
    with pytest.raises(ValueError, match="must be"):
        IndexSearch(index=open_index(file), **settings)
