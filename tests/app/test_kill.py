"""Killed with SIGKILL at random points and continued with `ckpt_path=last`, a run is the one that was not killed."""

from random import Random

import pytest

from tests.support.killed_runs import check_same, train_to_the_end, train_until_killed, train_until_seen

pytestmark = pytest.mark.slow

LIGHTNING_LOGS = "lightning.pytorch.trainer.connectors.logger_connector.logger_connector:_LoggerConnector"
SAVE = "aepo_lightning.callbacks.atomic_checkpoint"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_to_the_end(folder)
    return folder


def points(seed, choices):
    """Shuffle points and draw after how many calls each strikes. Two iterations are left at the latest of them."""
    random = Random(seed)
    found = [{"where": where, "count": random.randint(*calls)} | extra for where, calls, extra in choices]
    random.shuffle(found)
    return found


UPDATE_PHASE = [
    ("aepo_lightning.training.module:AEPOModule.score", (1, 4), {}),
    ("aepo_lightning.training.module:AEPOModule.training_step", (1, 4), {}),
    ("aepo_lightning.training.module:AEPOModule._log_step", (1, 4), {}),
    ("aepo_lightning.training.module:AEPOModule.validation_step", (1, 1), {}),
    (f"{SAVE}:put_in_place", (1, 1), {"cuts": True}),  # half of the file is written
    (f"{SAVE}:point_last_to", (1, 1), {}),  # it has its name, `last.ckpt` is the one before
    (f"{LIGHTNING_LOGS}.update_train_epoch_metrics", (2, 2), {}),  # saved, but not yet in the curves
]
ROLLOUTS = [
    ("aepo_lightning.rollout.journal:_write_line", (5, 120), {}),
    ("aepo_lightning.rollout.journal:_write_line", (5, 120), {}),
    ("aepo_lightning.rollout.journal:RolloutJournal.append", (1, 7), {}),
]


@pytest.mark.timeout(600)
def test_a_run_killed_in_cold_start_update_validation_and_save_is_bit_equal(tmp_path, whole):
    folder = tmp_path / "run"
    train_until_seen(folder / "coldstart_logs", folder, "ckpt_path=last")
    for point in points(1, UPDATE_PHASE):
        train_until_killed(folder, "ckpt_path=last", kill=point)
    train_to_the_end(folder, "ckpt_path=last")
    check_same(folder, whole)


@pytest.mark.timeout(600)
def test_a_run_killed_in_its_rollouts_keeps_them_and_trains_on_the_same_tokens(tmp_path, whole):
    folder = tmp_path / "run"
    for point in points(2, ROLLOUTS):
        train_until_killed(folder, "ckpt_path=last", kill=point)
    train_to_the_end(folder, "ckpt_path=last")
    check_same(folder, whole, is_exact=False)


@pytest.mark.timeout(600)
def test_a_run_killed_after_its_last_iteration_is_finished_without_more_rollouts(tmp_path, whole):
    folder = tmp_path / "run"
    train_until_killed(folder, kill={"where": "aepo_lightning.app.stages:_export", "count": 1})
    output = train_to_the_end(folder, "ckpt_path=last")
    assert "Continuing after iteration 5 (optimiser step 12)" in output
    check_same(folder, whole)
