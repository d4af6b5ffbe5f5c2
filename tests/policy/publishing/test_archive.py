"""What an archive keeps on a disk that is not without end."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from aepo_lightning.errors import ConfigError, DataError
from aepo_lightning.policy.network import PolicyNetwork
from aepo_lightning.policy.publishing import archive
from aepo_lightning.policy.publishing.archive import WeightsArchive, read_weights
from tests.support.builders import tiny_policy


@pytest.fixture
def network():
    return PolicyNetwork(tiny_policy().build_model())


def size_of_version(network, tmp_path):
    WeightsArchive(tmp_path / "one").save(network, 0)
    return (tmp_path / "one" / "00000000.safetensors").stat().st_size


def test_unless_told_otherwise_it_keeps_what_fits(network, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "AUTO_BYTES", int(2.5 * size_of_version(network, tmp_path)))
    own = WeightsArchive(tmp_path / "own")
    for version in range(4):
        own.save(network, version)
    assert own.versions() == [2, 3]


@pytest.mark.parametrize("is_writer", [True, False])
def test_what_is_too_large_is_not_written_and_said_once(network, tmp_path, monkeypatch, caplog, is_writer):
    monkeypatch.setattr(archive, "AUTO_BYTES", 1000)
    own = WeightsArchive(tmp_path / "own")
    with caplog.at_level(logging.INFO):
        for version in range(3):
            own.save(network, version, is_writer)
    assert not (tmp_path / "own").exists()
    assert caplog.text.count("No weights are kept beside the rollouts") == is_writer
    WeightsArchive(tmp_path / "asked", keep=1).save(network, 0)
    assert WeightsArchive(tmp_path / "asked").versions() == [0]


def test_other_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`keep` must be -1 \(all\), 0 \(none\), positive or auto, but got -2"):
        WeightsArchive(tmp_path, keep=-2)


@pytest.mark.parametrize("message", ["No space left on device (os error 28)", "Read-only file system (os error 30)"])
def test_a_disk_that_refuses_is_one_message_and_leaves_nothing(network, tmp_path, monkeypatch, message):
    def refuse(_, path):
        path.write_bytes(b"half")
        raise archive.SafetensorError(f"Error while serializing: I/O error: {message}")

    monkeypatch.setattr(archive, "save_file", refuse)
    with pytest.raises(DataError, match=r"00000003\.safetensors must be written, but: .*os error.*keep_weights=0"):
        WeightsArchive(tmp_path).save(network, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(DataError, match=r"w\.safetensors must be a safetensors file that can be read, but: "):
        read_weights(path)
