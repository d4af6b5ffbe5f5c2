"""Small parts of the zygote that need no jail: messages, wiping, user numbers."""

import os
import socket

import pytest

from aepo_lightning.tools.jail.inside.framing import FrameBuffer, pack_frame
from aepo_lightning.tools.jail.inside.scratch import Scratch
from aepo_lightning.tools.jail.inside.wipe import wipe
from aepo_lightning.tools.jail.uids import UserLease


def test_messages_survive_any_cutting():
    data = pack_frame({"a": 1}, b"\x00\xff") + pack_frame({}) + pack_frame({"b": "é"}, b"x" * 1000)
    buffer, found = FrameBuffer(), []
    for position in range(0, len(data), 7):
        buffer.feed(data[position : position + 7])
        while (frame := buffer.next_frame()) is not None:
            found.append(frame)
    assert found == [({"a": 1}, b"\x00\xff"), ({}, b""), ({"b": "é"}, b"x" * 1000)]


@pytest.mark.parametrize(
    "data", [b"\xff" * 16, b"\x00\x00\x00\x02\x00\x00\x00\x00[]", b"\x00\x00\x00\x01\x00\x00\x00\x00x"]
)
def test_what_is_no_message_is_refused(data):
    buffer = FrameBuffer()
    buffer.feed(data)
    with pytest.raises(ValueError):  # noqa: PT011 - also that of the JSON reader
        buffer.next_frame()


def test_wiping_takes_everything_but_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/file").write_text("x")
    os.symlink("/etc", tmp_path / "link")
    os.mkfifo(tmp_path / "a/pipe")
    (tmp_path / "a/b").chmod(0)
    (tmp_path / "a").chmod(0)
    assert wipe(str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert os.path.isdir("/etc")


def test_wiping_forgets_the_times_of_the_folder(tmp_path):
    os.utime(tmp_path, (12345, 67890))
    assert wipe(str(tmp_path))
    assert os.stat(tmp_path).st_mtime == 0


def test_scratch_takes_what_fits_and_gives_its_memory_back():
    ours, theirs = os.pipe()
    os.write(theirs, b"abcdef")
    os.close(theirs)
    scratch = Scratch(4)
    assert scratch.read(ours) == 4
    assert scratch.read(ours) == 0  # no room
    assert (len(scratch), bytes(scratch.view)) == (4, b"abcd")
    scratch.truncate(2)
    assert bytes(scratch.view) == b"ab"
    scratch.close()
    os.close(ours)
    with pytest.raises(ValueError, match="released"):
        bytes(scratch.view)


def test_scratch_knows_whether_all_of_a_message_came():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"abcdef")
        theirs.close()
        assert Scratch(4).receive_all(ours)
        assert not Scratch(4).receive_all(ours)
        assert Scratch(0).receive_all(ours)


def test_wiping_follows_no_link_out(tmp_path):
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    inside = tmp_path / "inside"
    inside.mkdir()
    os.symlink(outside, inside / "link")
    assert wipe(str(inside))
    assert (outside / "kept").is_dir()


def test_wiping_reaches_any_depth(tmp_path):
    here = os.getcwd()
    os.chdir(tmp_path)
    for _ in range(400):  # ten times the longest path
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    os.chdir(here)
    assert wipe(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_wiped_is_reported(tmp_path):
    assert not wipe(str(tmp_path / "missing"))


def test_user_numbers_are_unique_while_they_are_held():
    first, second = UserLease(), UserLease()
    assert first.uid != second.uid
    first.close()
    third = UserLease()
    assert third.uid != second.uid
    assert 60_000 <= third.uid < 61_184
    second.close()
    third.close()
