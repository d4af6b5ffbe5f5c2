"""The rows of JSONL and parquet files, and of datasets on the Hub."""

import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.tasks.conversations import ConversationFiles, Fault, UnusableRowError

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def found(source, split="train"):
    return [
        (row.place, row.content.fault if isinstance(row.content, UnusableRowError) else [m.text for m in row.content])
        for row in source.rows(split)
    ]


def test_lines_that_are_no_object_are_rows_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{json.dumps(ROW)}\n{{"messages": \n\n[1]\n{json.dumps({"x": 1})}\n', encoding="utf-8")
    expected = [("line 1", ["q", "a"]), ("line 2", Fault.UNREADABLE), ("line 4", Fault.UNREADABLE)]
    assert found(ConversationFiles(path=str(path))) == [*expected, ("line 5", Fault.NO_MESSAGES)]


def test_a_list_and_parquet_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW, 3]))
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    with_calls = {"messages": [{"role": "assistant", "content": "t", "tool_calls": [call]}], "other": 1}
    pq.write_table(pa.Table.from_pylist([with_calls, {"messages": None, "other": 2}]), tmp_path / "b.parquet")
    source = ConversationFiles(path=[str(tmp_path / "a.json"), str(tmp_path / "b.parquet")])
    assert found(source) == [
        ("item 1", ["q", "a"]),
        ("item 2", Fault.UNREADABLE),
        ("row 0", ["t"]),
        ("row 1", Fault.NO_MESSAGES),
    ]
    assert [row.content[0].calls[0].name for row in source.rows("train") if row.place == "row 0"] == ["f"]
    assert found(source, "val") == []


def test_a_dataset_of_the_hub_is_read_at_its_revision(monkeypatch):
    asked = []

    def load_dataset(name, subset, **options):
        asked.append((name, subset, options))
        return [ROW]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert found(ConversationFiles(hub="me/mine", revision="abc", subset="s")) == [("row 0", ["q", "a"])]
    assert asked == [("me/mine", "s", {"split": "train", "revision": "abc"})]


@pytest.mark.parametrize("num_read", [None, 1], ids=["loading", "iterating"])
def test_what_keeps_a_dataset_from_being_read_is_said(monkeypatch, num_read):
    def rows():
        yield from [ROW] * num_read
        raise OSError("no network")

    def fail(name, subset, **options):
        if num_read is not None:
            return rows()
        raise OSError("no network")

    source = ConversationFiles(hub="me/mine", revision="abc")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(DataError, match="me/mine at abc must be readable, but: no network"):
        list(source.rows("train"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"aepo-lightning\[hub\]"):
        list(source.rows("train"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "`path` or `hub`"),
        ({"path": "a", "hub": "b", "revision": "c"}, "one of them"),
        ({"hub": "b"}, "`revision`"),
    ],
)
def test_settings_that_name_no_rows_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        ConversationFiles(**settings)
