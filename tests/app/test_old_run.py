"""A run folder that was written before modules and keys had their present names still serves.

`tests/support/old_run.tar.xz` holds two iterations of a small `python train.py`, and beside them, in `expected`, the
rollouts of the third with which the code that wrote it went on.
"""

import tarfile

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import equal

from aepo_lightning.app import stages
from aepo_lightning.app.build import build, build_run
from aepo_lightning.app.export import export
from aepo_lightning.app.replay import replay_run
from aepo_lightning.app.saved_config import mappings
from aepo_lightning.app.saved_run import first_policy, load_config
from aepo_lightning.checkpoints import IDENTITY_KEY, find_last, verify_checkpoint
from aepo_lightning.rollout import RolloutJournal, difference
from tests.support.composed import composed
from tests.support.paths import SUPPORT

OVERRIDES = [
    "coldstart.num_steps=300",
    "data.num_val_questions=2",
    "data.task.num_val_questions=2",
    "data.task.num_places=4",
    "data.task.num_exits=2",
    "data.task.num_steps=1",
    "data.questions_per_iteration=4",
    "experience.questions_per_step=4",
    "callbacks.checkpoint.every_n_epochs=1",
    "model.architecture.hidden_size=16",
    "model.architecture.intermediate_size=16",
    "model.architecture.num_hidden_layers=1",
    "model.architecture.head_dim=8",
    "algorithm.budget=4",
    "rollout.sampling.max_response_tokens=32",
]
"""What the run was started with."""


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(SUPPORT / "old_run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def test_every_target_of_its_configuration_is_found(folder):
    targets = {node["_target_"] for node in mappings(OmegaConf.to_container(load_config(folder))) if "_target_" in node}
    assert len(targets) > 20
    assert all(callable(get_object(target)) for target in targets)


def test_its_configuration_builds_the_run(folder):
    cfg = load_config(folder)
    run = build_run(cfg, first_policy(cfg, folder), folder)
    run.engine.close()
    assert run.trainer.max_epochs == 2
    assert build(cfg.data.task).num_places == 4


def test_its_checkpoint_is_recognised(folder):
    summary = verify_checkpoint(find_last(folder / "checkpoints"))
    assert (summary.epoch, summary.global_step, summary.identity["format"]) == (1, 2, 1)
    assert IDENTITY_KEY == "aepo_record"


def test_it_goes_on_with_the_same_rollouts(folder):
    """The third iteration depends on the weights, the optimizer and the random states that were saved."""
    cfg = composed(*OVERRIDES, f"run_dir={folder}", "ckpt_path=last", "trainer.max_epochs=3")
    record = stages.open_run(cfg)
    run = build_run(cfg, stages.cold_start(record), record.folder)
    stages.fit(record, run)
    run.engine.close()
    name = "train-00002-rank0"
    expected, found = (
        {tree.question.question_id: tree for tree in RolloutJournal(place).read(name)}
        for place in (folder / "expected", folder / "rollouts")
    )
    assert expected.keys() == found.keys()
    assert [difference(tree, found[question]) for question, tree in expected.items()] == [None] * 4
    assert verify_checkpoint(find_last(folder / "checkpoints")).global_step == 3


def test_its_trees_replay(folder):
    replays = list(replay_run(folder))
    assert [replay.difference for replay in replays] == [None] * 8


def test_its_policy_is_exported(folder, tmp_path):
    done = export(folder, tmp_path / "policy")
    weights, before = (load_file(each / "model.safetensors") for each in (done.target, folder / "coldstart"))
    assert done.global_step == 2
    assert weights.keys() == before.keys()
    assert not all(equal(weights[name], before[name]) for name in weights)
