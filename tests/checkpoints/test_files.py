import os

import pytest

from aepo_lightning.atomic_files import put_in_place, remove
from aepo_lightning.checkpoints import find_checkpoints, find_last, point_last_to, remove_partial


def make(path, text="new", is_folder=False, age=None):
    file = path / "meta.pt" if is_folder else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    if age is not None:
        os.utime(path, (age, age))
    return path


def content(path):
    return (path / "meta.pt" if path.is_dir() else path).read_text()


KINDS = pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])


@KINDS
def test_a_finished_checkpoint_takes_the_place_of_the_one_before(tmp_path, is_folder):
    target = make(tmp_path / "a.ckpt", "old", is_folder)
    put_in_place(make(tmp_path / "a.ckpt.partial", "new", is_folder), target)
    assert content(target) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


class Recorder:
    """Notes what is brought to the disk and what is renamed, in order."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.fsync, self.replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.on_fsync)
        monkeypatch.setattr(os, "replace", self.on_replace)

    def on_fsync(self, descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.calls.append(("flush", name))
        self.fsync(descriptor)

    def on_replace(self, source, target):
        self.calls.append(("rename", target.name))
        self.replace(source, target)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads the names of descriptors from /proc")
@KINDS
def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, is_folder):
    partial = make(tmp_path / "a.ckpt.partial", "new", is_folder)
    recorder = Recorder(monkeypatch)
    put_in_place(partial, tmp_path / "a.ckpt")
    content = [("flush", "meta.pt")] if is_folder else []
    expected = [*content, ("flush", "a.ckpt.partial"), ("rename", "a.ckpt"), ("flush", tmp_path.name)]
    assert recorder.calls == expected


@KINDS
def test_last_is_what_the_link_points_to(tmp_path, is_folder):
    old, new = (make(tmp_path / f"{name}.ckpt", is_folder=is_folder, age=age) for name, age in (("a", 100), ("b", 200)))
    point_last_to(new)
    assert find_last(tmp_path) == new
    point_last_to(old)
    assert find_last(tmp_path) == old
    assert os.readlink(tmp_path / "last.ckpt") == "a.ckpt", "relative, so that a run folder can be moved"


@KINDS
def test_a_link_that_points_nowhere_does_not_hide_the_newest_checkpoint(tmp_path, is_folder):
    for name, age in (("a", 200), ("b", 100)):
        make(tmp_path / f"{name}.ckpt", is_folder=is_folder, age=age)
    (tmp_path / "last.ckpt").symlink_to("gone.ckpt")
    assert find_last(tmp_path) == tmp_path / "a.ckpt"


def test_a_last_checkpoint_of_another_callback_is_found_and_replaced(tmp_path):
    make(tmp_path / "last.ckpt", is_folder=True)
    assert find_last(tmp_path) == tmp_path / "last.ckpt"
    point_last_to(make(tmp_path / "a.ckpt"))
    assert find_last(tmp_path) == tmp_path / "a.ckpt"


def test_a_disk_without_links_still_has_a_last_checkpoint(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    target = make(tmp_path / "a.ckpt")
    point_last_to(target)
    assert "no links here" in caplog.text
    assert find_last(tmp_path) == target


def test_no_checkpoint_is_no_last_one(tmp_path):
    assert find_last(tmp_path) is None
    assert find_last(tmp_path / "gone") is None


@KINDS
def test_what_is_partial_is_no_checkpoint_and_can_be_cleared_away(tmp_path, is_folder):
    make(tmp_path / "a.ckpt.partial", is_folder=is_folder)
    make(tmp_path / "b.ckpt")
    assert find_checkpoints(tmp_path) == [tmp_path / "b.ckpt"]
    assert remove_partial(tmp_path) == ["a.ckpt.partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.ckpt"]


def test_a_folder_that_is_being_removed_does_not_look_whole(tmp_path, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    make(tmp_path / "a.ckpt", is_folder=True)
    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        remove(tmp_path / "a.ckpt")
    assert find_checkpoints(tmp_path) == []
