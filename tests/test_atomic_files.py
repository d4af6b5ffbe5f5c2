"""What is written beside its place is put there whole, or not at all."""

import json

import pytest

from aepo_lightning.atomic_files import replacing, write_json


def test_what_was_written_takes_the_place_of_what_was_there(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with replacing(target) as partial:
            partial.write_text(text)
    assert target.read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("first")
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(target, {"a": object()})
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path):
    left = tmp_path / "folder.partial"
    left.mkdir()
    (left / "half").touch()
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_mapping_becomes_a_json_file(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1.5}
