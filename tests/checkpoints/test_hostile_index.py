"""Somebody else's sharded checkpoint runs nothing: its index and its values are read before torch sees them."""

import pickle
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from aepo_lightning.app.saved_run import SavedPolicy
from aepo_lightning.checkpoints import (
    IDENTITY_KEY,
    EitherCheckpointIO,
    check_before_loading,
    verification,
    verify_checkpoint,
)
from aepo_lightning.checkpoints.sharded_index import read_index
from aepo_lightning.errors import DataError
from tests.support.training import make_module, make_trainer, small_policy


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def folder(tmp_path):
    """A sharded checkpoint as Lightning leaves it."""
    path = tmp_path / "iteration0001.ckpt"
    optimizer = {"state": {"w": {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": ["w"]}]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"state_dict": {"w": torch.ones(3, dtype=torch.bfloat16)}, "optimizer_0": optimizer}, checkpoint_id=path)
    torch.save({"epoch": 1, "global_step": 2, IDENTITY_KEY: {"format": 1, "architecture": {}}}, path / "meta.pt")
    return path


@pytest.fixture
def witness(tmp_path):
    return tmp_path / "it ran"


def spoil_index(folder, change):
    metadata = FileSystemReader(folder).read_metadata()
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def hostile_index(folder, witness):
    spoil_index(folder, lambda metadata: setattr(metadata, "planner_data", Call(Path.touch, witness)))


def hostile_index_in_a_key(folder, witness):
    spoil_index(
        folder, lambda metadata: metadata.state_dict_metadata.update({"x": Call(eval, f"open({str(witness)!r}, 'w')")})
    )


def hostile_index_before_all(folder, witness):
    code = b"cposix\nsystem\n(S'touch \"" + str(witness).encode() + b"\"'\ntR0"
    (folder / ".metadata").write_bytes(code + (folder / ".metadata").read_bytes())


def hostile_value(folder, witness):
    """An entry of a shard that is no tensor: torch loads these with its full loader, too."""
    entry = next(each for each in read_index(folder) if not each.is_tensor)
    torch.save(Call(Path.touch, witness), folder / "value")
    content = (folder / "value").read_bytes()
    shard = folder / entry.file
    start = shard.stat().st_size
    with shard.open("ab") as file:
        file.write(content)

    def move(metadata):
        for key, info in metadata.storage_data.items():
            if isinstance(metadata.state_dict_metadata[key.fqn], BytesStorageMetadata):
                info.offset, info.length = start, len(content)

    spoil_index(folder, move)


HOSTILE = {
    "index": (
        hostile_index,
        ".metadata",
        "it names pathlib",
    ),
    "key": (hostile_index_in_a_key, ".metadata", "it names builtins.eval"),
    "first": (hostile_index_before_all, ".metadata", "it names posix.system"),
    "value": (hostile_value, "__0_0.distcp", "it cannot be read"),
}


def open_for_export(folder):
    SavedPolicy.open(folder, None, small_policy())


def resume_without_shards(folder):
    EitherCheckpointIO().load_checkpoint(folder)


def resume_with_any_strategy(folder):
    trainer = make_trainer(folder.parent, logger=False)
    check_before_loading(trainer.strategy)
    check_before_loading(trainer.strategy)
    trainer.strategy.load_checkpoint(folder)


READERS = [verify_checkpoint, open_for_export, resume_without_shards, resume_with_any_strategy]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("spoil", "name", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_part_is_named_and_never_run(folder, witness, read, spoil, name, reason):
    spoil(folder, witness)
    with pytest.raises(DataError, match=rf"{folder / name} must be a whole part .*({reason})"):
        read(folder)
    assert not witness.exists()


@pytest.mark.parametrize("spoil", [each[0] for each in HOSTILE.values()], ids=HOSTILE)
def test_torch_itself_would_run_it(folder, witness, spoil):
    """Or the tests above would test nothing."""
    spoil(folder, witness)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # what becomes of the rest does not matter
            load({"optimizer_0": {"param_groups": [{"lr": 0.0, "params": []}]}}, checkpoint_id=folder)
    assert witness.exists()


def test_the_module_has_every_sharded_folder_checked(folder, witness, tmp_path):
    hostile_index(folder, witness)
    module = make_module()
    with pytest.raises(DataError, match="it names"):
        make_trainer(tmp_path, logger=False).validate(module, [[]], ckpt_path=folder)
    assert not witness.exists()


@pytest.mark.parametrize(
    "field",
    [{"relative_path": "../other"}, {"relative_path": "/etc/passwd"}, {"relative_path": ".."}, {"offset": "0"}],
    ids=str,
)
def test_an_index_of_other_places_is_refused(folder, field):
    def change(metadata):
        for info in metadata.storage_data.values():
            vars(info).update(field)

    spoil_index(folder, change)
    with pytest.raises(DataError, match=r"\.metadata must be a whole part .*which is no file beside it"):
        verify_checkpoint(folder)


# Changes objects that the index may name: their class, their methods, or a value after it was read.
TRICKS = {
    "class": (b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N(S'load_id'\nI1\ndtb.", "argument"),
    "class fields": (b"ctorch.distributed.checkpoint.metadata\nMetadata\n(S'load_id'\nI1\ndb.", "argument"),
    "value": (b"ctorch\nSize\n(tR(S'a'\nI1\ndb.", "it changes a Size"),
    "call": (b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n(S'a'\nI0\nI0\ntR.", "it calls _StorageInfo"),
    "argument": (b"cpathlib\nPosixPath\n(ctorch\nSize\ntR.", "it calls PosixPath with"),
    "attribute": (b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93.", "it names torch.serialization.os.sys"),
    "no index": (b"I1\n.", "it must have a Metadata where it has int"),
    "deep": (b"(" * 10_000 + b"I1\n" + b"t" * 10_000 + b".", "it must have a Metadata where it has tuple"),
}


@pytest.mark.parametrize(("trick", "reason"), TRICKS.values(), ids=TRICKS)
def test_what_an_index_may_name_cannot_be_changed(folder, trick, reason):
    (folder / ".metadata").write_bytes(trick)
    with pytest.raises(DataError, match=rf"\.metadata must be a whole part .*it cannot be read \(.*{reason}"):
        verify_checkpoint(folder)


def test_an_entry_that_is_compressed_is_refused(folder):
    spoil_index(
        folder, lambda index: [vars(at).update(transform_descriptors=["x"]) for at in index.storage_data.values()]
    )
    with pytest.raises(DataError, match=r"\.metadata must be a whole part .*is compressed, which no checkpoint"):
        verify_checkpoint(folder)


def test_a_folder_is_checked_once_unless_a_file_of_it_changes(folder, witness, monkeypatch):
    read = []
    monkeypatch.setattr(verification, "read_index", lambda path: read.append(path) or read_index(path))
    for _ in range(2):
        verify_checkpoint(folder)
        resume_without_shards(folder)
    assert len(read) == 1
    hostile_index(folder, witness)
    for _ in range(2):
        with pytest.raises(DataError, match="it names"):
            resume_without_shards(folder)
    assert len(read) == 3


def test_a_good_folder_is_read(folder):
    assert verify_checkpoint(folder).global_step == 2
    assert sorted({entry.is_tensor for entry in read_index(folder)}) == [False, True]
    assert EitherCheckpointIO().load_checkpoint(folder)["state_dict"]["w"].tolist() == [1, 1, 1]
