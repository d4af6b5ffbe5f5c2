"""Paths of a configuration, and disks that refuse."""

import os

import pytest
from omegaconf import OmegaConf

from aepo_lightning.app.paths import UNWRITABLE, expand_paths, explain_unwritable, writing
from aepo_lightning.app.report import RunReport
from aepo_lightning.app.stages import RunRecord
from aepo_lightning.errors import ConfigError, TrainingError
from tests.support.paths import CONF


def test_paths_are_expanded_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    cfg = OmegaConf.create(
        {
            "output_root": "~/runs",
            "model": {"name_or_path": "$DATA/m", "dtype": "~"},
            "data": {"task": {"path": ["~/a.jsonl", "$DATA/b.jsonl", "c"], "pattern": "^$DATA~", "val_path": None}},
            "tools": [{"cache": {"path": "${output_root}/x"}, "folder": "???", "weights_dir": 7}],
        }
    )
    expand_paths(cfg)
    assert OmegaConf.to_container(cfg) == {
        "output_root": "/home/me/runs",
        "model": {"name_or_path": "/data/m", "dtype": "~"},
        "data": {"task": {"path": ["/home/me/a.jsonl", "/data/b.jsonl", "c"], "pattern": "^$DATA~", "val_path": None}},
        "tools": [{"cache": {"path": "${output_root}/x"}, "folder": "???", "weights_dir": 7}],
    }
    assert cfg.tools[0].cache.path == "/home/me/runs/x"


def test_a_variable_that_is_not_set_is_named_with_its_key():
    cfg = OmegaConf.create({"data": {"task": {"path": ["a", "${oc.env:HOME}/x", "$NOT_THERE/x"]}}})
    with pytest.raises(
        ConfigError, match=r"`data\.task\.path` must name what exists, but got .* there is no \$NOT_THERE"
    ):
        expand_paths(cfg)


@pytest.mark.parametrize("number", UNWRITABLE, ids=os.strerror)
def test_an_error_of_the_disk_is_one_message_with_path_and_remedy(tmp_path, number):
    for name in ("deep/file", None):
        error = OSError(number, os.strerror(number), *([] if name is None else [str(tmp_path / name)]))
        with pytest.raises(ConfigError) as found, writing(tmp_path):
            raise error
        text = str(found.value)
        assert text.startswith(str(tmp_path if name is None else tmp_path / name))
        assert os.strerror(number) in text
        assert "run_dir=" in text
        assert "\n" not in text


def test_what_cannot_be_read_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    error = PermissionError(13, "Permission denied", str(tmp_path))
    assert explain_unwritable(error, tmp_path) == (
        f"{tmp_path} must be readable, but: Permission denied. Allow it, or name another one."
    )


def test_a_disk_that_fills_during_a_run_ends_it_with_one_message(tmp_path):
    def write():
        with open("/dev/full", "w", encoding="utf-8") as file:
            file.write("x" * 100000)

    report = RunReport(name="x", algorithm="aepo", folder=tmp_path)
    record = RunRecord(cfg=OmegaConf.create(), report=report, checkpoint=None)
    with pytest.raises(TrainingError, match=rf"{tmp_path} must be written, but: No space left.*ckpt_path=last"), record:
        write()
    with pytest.raises(ConnectionRefusedError), record:
        raise ConnectionRefusedError(111, "refused")


def test_files_of_the_configuration_are_looked_for_where_tasks_look(tmp_path, monkeypatch):
    cache = OmegaConf.load(CONF / "tools" / "search_cache_python.yaml").search.documents
    corpus = OmegaConf.load(CONF / "tools" / "corpus.yaml").search.index
    monkeypatch.setenv("AEPO_DATA_DIR", str(tmp_path))
    assert [cache.path, corpus.files[0]] == [f"{tmp_path}/search_cache.json", f"{tmp_path}/corpus.jsonl"]
    monkeypatch.delenv("AEPO_DATA_DIR")
    monkeypatch.setattr("aepo_lightning.tasks.paths._CHECKOUT", tmp_path / "checkout")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert cache.path == f"{tmp_path}/shared/data/search_cache.json"
