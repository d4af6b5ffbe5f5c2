"""The first steps of a run are compared with the trees, and a clip range that never acts gets one warning."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from aepo_lightning.callbacks import UpdateChecks
from aepo_lightning.contracts.batch import Minibatch
from aepo_lightning.errors import ConfigError, TrainingError
from aepo_lightning.training.batching import Batcher, Row
from tests.support.training import make_tree, policy_turn, tool_turn

pytestmark = pytest.mark.usefixtures("without_type_checks")  # stand-ins for a trainer

TREE = make_tree([[policy_turn(5), tool_turn(7), policy_turn(8)]], [1.0])


@pytest.fixture(autouse=True)
def first_rank(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)


def minibatch():
    rows = [Row(trajectory=each, group=0, reward=1.0, advantage=1.0) for each in TREE.trajectories()]
    return Minibatch(micro_batches=[Batcher(max_tokens=9).collate(rows)], global_num_tokens=2, global_num_sequences=1)


def trainer_of(**metrics):
    found = {f"train/{name}": torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(datamodule=SimpleNamespace(trees=[TREE]), lightning_module=None, callback_metrics=found)


def run(checks, *steps, num_iterations=2):
    """Go through iterations of the same steps, each given by what it logs."""
    for _ in range(num_iterations):
        for place, metrics in enumerate(steps):
            checks.on_train_batch_end(trainer_of(**metrics), None, None, None, place)
        checks.on_train_epoch_end(trainer_of(), None)


def step(high=0.0, low=0.0, distance=1e-5, ratio=1.001):
    return {"clip_fraction_high": high, "clip_fraction_low": low, "approx_kl": distance, "importance_ratio": ratio}


def test_masks_that_are_right_are_told_once(caplog):
    caplog.set_level("INFO")
    checks = UpdateChecks()
    for _ in range(2):
        checks.on_train_batch_start(trainer_of(), None, minibatch(), 0)
    assert [record.getMessage() for record in caplog.records] == [
        "The first step trains on sampled tokens only, as the trees of its 1 trajectories say."
    ]


def test_a_mask_that_trains_on_a_tool_result_ends_the_run():
    wrong = minibatch()
    wrong.micro_batches[0].response_mask[:] = True
    with pytest.raises(TrainingError, match=r"of the prompt or of a tool result.*Nothing was trained"):
        UpdateChecks().on_train_batch_start(trainer_of(), None, wrong, 0)


@pytest.mark.parametrize(
    ("steps", "warning"),
    [
        ([step(distance=0.0, ratio=1.0)], "Every importance ratio of the first 2 optimiser steps is exactly 1"),
        ([step(distance=0.0), step()], "No token was beyond the clip range in the first 4 optimiser steps"),
        ([step(distance=0.0)] * 2, "No token was beyond the clip range in the first 4 optimiser steps"),
        ([step(distance=0.0) | {"grad_norm": 0.0}], None),
        ([step(), step(high=1e-4)], None),
        ([step(low=1e-4)], None),
        ([{"loss": 1.0}], None),
    ],
    ids=["on-policy", "never", "unmoved", "nothing learned", "above", "below", "another objective"],
)
def test_a_clip_range_that_never_acts_gets_one_warning(caplog, steps, warning):
    run(UpdateChecks(num_iterations=2), *steps, num_iterations=4)
    found = [record.getMessage() for record in caplog.records]
    assert [text.startswith(warning) for text in found] == ([True] if warning else [])


def test_nothing_is_said_before_the_first_iterations_are_over(caplog):
    run(UpdateChecks(num_iterations=3), step(), num_iterations=2)
    assert caplog.records == []


def test_a_number_without_meaning_is_refused():
    with pytest.raises(ConfigError, match="`num_iterations` must be at least 1"):
        UpdateChecks(num_iterations=0)
