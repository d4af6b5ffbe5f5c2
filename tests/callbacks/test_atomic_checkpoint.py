import errno
import logging
import os
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from typing_extensions import override

from aepo_lightning.callbacks import AtomicCheckpoint, BranchPenalty
from aepo_lightning.checkpoints import EitherCheckpointIO
from aepo_lightning.errors import ConfigError, DataError, SignalExit, TrainingError
from tests.support.slow import quick
from tests.support.training import flat, make_module, make_run, small_policy


class Draws(L.Callback):
    """Draws random numbers in every iteration, as dropout or a user's code would.

    Not from Python's own generator: beartype, which checks types in tests, draws from it at every call.
    """

    @override
    def on_train_epoch_start(self, trainer, pl_module):
        value = torch.rand(()).item() + np.random.rand()
        pl_module.log("draws", torch.tensor(value, dtype=torch.float64))


class Stop(L.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    @override
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


def saver(folder, every_n_epochs=1, **options):
    return AtomicCheckpoint(folder / "checkpoints", every_n_epochs, **options)


def run_of(folder, *callbacks, max_epochs=1, policy=None, **options):
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.9)
    module = make_module(policy or small_policy(), optimizer=optimizer, scheduler=scheduler)
    return make_run(folder, module, callbacks=list(callbacks), max_epochs=max_epochs, **options)


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# What is in it ------------------------------------------------------------------------------------------------------


def test_a_continued_run_has_every_state_of_the_one_that_was_not_stopped(tmp_path):
    def make(folder, max_epochs):
        penalty = BranchPenalty(target_concentration=0.5, step=0.07)
        return run_of(tmp_path / folder, Draws(), penalty, saver(tmp_path / folder), max_epochs=max_epochs)

    L.seed_everything(3, verbose=False)
    whole = make("whole", 4).fit()
    L.seed_everything(3, verbose=False)
    first = make("half", 2).fit()
    L.seed_everything(4, verbose=False)
    second = make("half", 4).fit(tmp_path / "half" / "checkpoints" / "last.ckpt")
    del second.logger.rows[0]  # the end of the saved iteration once more; the next test looks at it
    assert first.logger.numbers() + second.logger.numbers() == whole.logger.numbers()
    assert torch.equal(flat(second.network.parameters()), flat(whole.network.parameters()))
    assert second.logger.values("rollout/branch_penalty")[-2:] == whole.logger.values("rollout/branch_penalty")[-2:]
    assert len(set(whole.logger.values("rollout/branch_penalty"))) > 1


def test_metrics_that_a_kill_kept_from_the_loggers_come_after_all(tmp_path):
    first = run_of(tmp_path, saver(tmp_path)).fit()
    second = run_of(tmp_path, saver(tmp_path), max_epochs=2).fit(tmp_path / "checkpoints" / "last.ckpt")
    step, values = second.logger.rows[0]
    assert step == 0
    at_the_end = next(row for _, row in reversed(first.logger.rows) if "rollout/reward" in row)
    for name, value in at_the_end.items():
        if name != "time/checkpoint_s":  # measured after the save
            assert values[name] == pytest.approx(float(value)), name


class TellToEnd(L.Callback):
    """A signal comes while the end of an iteration is logged."""

    @override
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.logger.log_metrics = self._raise

    def _raise(self, *_, **__):
        raise SignalExit(15)


def test_a_run_that_was_told_to_end_while_it_logged_goes_on_at_the_same_steps(tmp_path):
    with pytest.raises(SignalExit):
        run_of(tmp_path, saver(tmp_path, every_n_epochs=10), TellToEnd(), max_epochs=2).fit()
    assert files(tmp_path) == ["iteration0000.ckpt", "last.ckpt"]
    second = run_of(tmp_path, saver(tmp_path), max_epochs=2).fit(tmp_path / "checkpoints" / "last.ckpt")
    assert [step for step, row in second.logger.rows if "rollout/reward" in row] == [0, 1]


def test_another_algorithm_is_named_in_the_log(tmp_path, caplog):
    run_of(tmp_path, saver(tmp_path, algorithm="aepo")).fit()
    other = run_of(tmp_path, saver(tmp_path, algorithm="grpo"), max_epochs=2)
    with caplog.at_level(logging.WARNING):
        other.fit(tmp_path / "checkpoints" / "last.ckpt")
    assert "trained with algorithm=aepo; it goes on with grpo" in caplog.text


# When, and how many -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    quick(
        {
            "two": (2, 2, [3, 4]),
            "all": (2, -1, [1, 3, 4]),
            "one": (1, 1, [4]),
            "only the last iteration": (9, 2, [4]),
        },
        "two",
    ),
)
def test_the_newest_checkpoints_stay_and_last_is_the_newest(tmp_path, case):
    every, keep, expected = case
    run_of(tmp_path, saver(tmp_path, every, keep=keep), max_epochs=5).fit()
    assert files(tmp_path) == [*(f"iteration{number:04d}.ckpt" for number in expected), "last.ckpt"]
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "iteration0004.ckpt"


def test_the_iteration_after_which_a_callback_stops_the_run_is_saved(tmp_path):
    run_of(tmp_path, Stop(1), saver(tmp_path, every_n_epochs=10), max_epochs=5).fit()
    assert files(tmp_path) == ["iteration0001.ckpt", "last.ckpt"]


def test_the_last_iteration_is_saved_where_its_steps_are_counted(tmp_path):
    run_of(tmp_path, saver(tmp_path, every_n_epochs=10), max_epochs=-1, max_steps=2).fit()
    assert files(tmp_path) == ["iteration0001.ckpt", "last.ckpt"]


def test_a_run_that_goes_back_keeps_what_it_just_wrote(tmp_path):
    run_of(tmp_path, saver(tmp_path, keep=-1), max_epochs=4).fit()
    back = run_of(tmp_path, saver(tmp_path, keep=1), max_epochs=2)
    back.fit(tmp_path / "checkpoints" / "iteration0000.ckpt")
    assert files(tmp_path) == ["iteration0001.ckpt", "last.ckpt"]
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "iteration0001.ckpt"


def test_what_a_killed_run_left_unfinished_is_cleared_away_and_named(tmp_path, caplog):
    (tmp_path / "checkpoints" / "iteration0007.ckpt.partial").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        run_of(tmp_path, saver(tmp_path)).fit()
    assert "unfinished" in caplog.text
    assert "iteration0007.ckpt.partial" in caplog.text
    assert files(tmp_path) == ["iteration0000.ckpt", "last.ckpt"]


def test_a_save_is_timed(tmp_path):
    logger = run_of(tmp_path, saver(tmp_path, 2), max_epochs=2).fit().logger
    assert len(logger.values("time/checkpoint_s")) == 1
    assert logger.values("time/checkpoint_s")[0] > 0


@pytest.mark.parametrize("name", ["every_n_epochs", "keep"])
def test_numbers_without_meaning_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        AtomicCheckpoint(tmp_path, **{name: 0})


# Failures -----------------------------------------------------------------------------------------------------------


class FullDisk(EitherCheckpointIO):
    """A disk with room for so many checkpoints, and half of another one."""

    def __init__(self, room):
        self.room = room

    @override
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        self.room -= 1
        if self.room < 0:
            os.truncate(path, os.path.getsize(path) // 2)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_disk_stops_the_run_with_what_it_takes_and_leaves_what_was_saved(tmp_path, room):
    run = run_of(tmp_path, saver(tmp_path), max_epochs=3)
    run.trainer.strategy.checkpoint_io = FullDisk(room)
    with pytest.raises(TrainingError, match=r"No space left on device.*It takes .* GB and the disk has") as caught:
        run.fit()
    failed = tmp_path / "checkpoints" / f"iteration{room:04d}.ckpt"
    assert str(failed) in str(caught.value)
    if room:
        assert files(tmp_path) == ["iteration0000.ckpt", "last.ckpt"]
        assert "iteration0000.ckpt is intact" in str(caught.value)
        continued = run_of(tmp_path, saver(tmp_path), max_epochs=3).fit(tmp_path / "checkpoints" / "last.ckpt")
        whole = run_of(tmp_path / "whole", max_epochs=3).fit()
        assert torch.equal(flat(continued.network.parameters()), flat(whole.network.parameters()))
    else:
        assert files(tmp_path) == []
        assert "there is none before it" in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_before_a_weight_is_changed(tmp_path):
    run_of(tmp_path, saver(tmp_path)).fit()
    other = run_of(tmp_path, policy=small_policy(hidden_size=32, seed=5))
    with pytest.raises(DataError, match=r"it is of another model(.|\n)*\[.*16\] in it, \[.*32\] here"):
        other.fit(tmp_path / "checkpoints" / "last.ckpt")
    initial = small_policy(hidden_size=32, seed=5).build_model()
    assert torch.equal(flat(other.network.parameters()), flat(initial.parameters()))


def test_a_file_of_lightning_alone_is_refused(tmp_path):
    run = run_of(tmp_path, saver(tmp_path)).fit()
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("aepo_")}, tmp_path / "plain.ckpt")
    with pytest.raises(DataError, match="must have format 1, but got None"):
        run_of(tmp_path, max_epochs=2).fit(tmp_path / "plain.ckpt")
    assert run.network is not None
