import pytest
import torch

from aepo_lightning.checkpoints import IDENTITY_KEY, verify_checkpoint
from aepo_lightning.errors import DataError


def save(path, **state):
    torch.save(
        {"epoch": 4, "global_step": 10, IDENTITY_KEY: {"format": 1}, "weights": torch.arange(999.0)} | state, path
    )
    return path


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor([500.0]).numpy().tobytes())] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one bit": flip,
    "of something else": lambda path: path.write_text("no checkpoint"),
    "no state": lambda path: torch.save([1, 2], path),
    "unknown objects": lambda path: save(path, extra=pytest.approx(1)),
}


def test_a_whole_checkpoint_tells_where_its_run_is(tmp_path):
    summary = verify_checkpoint(save(tmp_path / "a.ckpt"))
    assert (summary.epoch, summary.global_step) == (4, 10)
    assert [summary.is_finished(epochs) for epochs in (4, 5, 6, -1)] == [True, True, False, False]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_with_the_next_best(tmp_path, damage):
    other, path = save(tmp_path / "other.ckpt"), save(tmp_path / "a.ckpt")
    damage(path)
    with pytest.raises(DataError, match=rf"{path} must be a whole part .*The next best is ckpt_path={other}\."):
        verify_checkpoint(path)


def test_the_only_checkpoint_has_no_better_one(tmp_path):
    path = tmp_path / "a.ckpt"
    path.touch()
    with pytest.raises(DataError, match="There is no other checkpoint beside it"):
        verify_checkpoint(path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = save(tmp_path / "a.ckpt", **{IDENTITY_KEY: {"format": 0, "library": "0.0.1"}})
    with pytest.raises(DataError, match=r"must have format 1, but got 0 \(written by version 0.0.1\)"):
        verify_checkpoint(path)
