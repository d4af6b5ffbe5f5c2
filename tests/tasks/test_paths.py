"""Relative paths: a folder that was named first, then the working directory, then the folder of data."""

import pytest

from aepo_lightning.errors import DataError
from aepo_lightning.tasks.paths import find_files


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("here", "env", "given"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AEPO_DATA_DIR", str(tmp_path / "env"))
    return tmp_path


@pytest.mark.parametrize(
    ("present", "data_dir", "found"),
    [
        (("here", "env", "given"), "given", "given"),
        (("here", "env"), "given", "here"),
        (("here", "env"), None, "here"),
        (("env",), None, "env"),
    ],
    ids=["data_dir", "not in data_dir", "working directory", "environment"],
)
def test_the_first_place_that_has_the_file_is_taken(folders, present, data_dir, found):
    for name in present:
        (folders / name / "a.jsonl").touch()
    assert find_files("a.jsonl", data_dir and str(folders / data_dir)) == [folders / found / "a.jsonl"]


def test_a_missing_file_is_named_with_both_places_and_what_to_set(folders):
    message = (
        f"`val_path` must name a file, but got 'no.jsonl' and there is no {folders}/here/no.jsonl and no "
        f"{folders}/env/no.jsonl. Correct it, or set `data_dir` or the environment variable AEPO_DATA_DIR"
    )
    with pytest.raises(DataError) as caught:
        find_files("no.jsonl", None, "val")
    assert str(caught.value).startswith(message)


def test_an_absolute_path_is_looked_for_in_one_place(folders):
    with pytest.raises(DataError, match=f"there is no {folders}/no.jsonl. Correct it"):
        find_files(f"{folders}/no.jsonl", None)
