"""A run that ends while it waits for rollouts, such as those of lost servers, is saved as it was before them."""

import errno

import lightning as L
import pytest
import torch
from typing_extensions import override

from aepo_lightning.errors import EngineError, SignalExit
from tests.callbacks.test_atomic_checkpoint import Draws, files, run_of, saver
from tests.support.training import flat


def cut_off(folder, at, error, *callbacks, **options):
    """A run of four iterations whose rollouts fail at one of them."""
    run = run_of(folder, Draws(), *callbacks, saver(folder, every_n_epochs=10, **options), max_epochs=4)
    collect = run.datamodule._collect

    def collect_or_fail():
        if run.datamodule.iteration == at:
            raise error
        collect()

    run.datamodule._collect = collect_or_fail
    L.seed_everything(3, verbose=False)
    with pytest.raises(type(error)):
        run.fit()
    return run


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(EngineError("No vLLM server is left"), id="error"),
        pytest.param(SignalExit(15), id="signal", marks=pytest.mark.slow),
    ],
)
def test_the_iterations_before_are_saved_and_a_run_goes_on_from_them_as_if_it_had_not_ended(tmp_path, error):
    L.seed_everything(3, verbose=False)
    whole = run_of(tmp_path / "whole", Draws(), saver(tmp_path / "whole", 10), max_epochs=4).fit()
    first = cut_off(tmp_path, 2, error)
    assert files(tmp_path) == ["iteration0001.ckpt", "last.ckpt"]
    L.seed_everything(4, verbose=False)
    second = run_of(tmp_path, Draws(), saver(tmp_path, 10), max_epochs=4).fit(tmp_path / "checkpoints" / "last.ckpt")
    assert first.logger.numbers() + second.logger.numbers() == whole.logger.numbers()
    assert torch.equal(flat(second.network.parameters()), flat(whole.network.parameters()))


def test_before_the_first_iteration_there_is_nothing_to_save(tmp_path):
    cut_off(tmp_path, 0, EngineError("gone"))
    assert files(tmp_path) == []


class FailInUpdate(L.Callback):
    @override
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise EngineError("in the middle of an update")


def test_what_ends_in_the_middle_of_an_update_is_not_saved_and_one_line_says_so(tmp_path, caplog):
    cut_off(tmp_path, 3, EngineError("in the middle"), FailInUpdate())
    assert files(tmp_path) == []
    line = "not saved, because the run ends in the middle of its steps. The run goes on from the beginning."
    assert caplog.text.count(line) == 1


@pytest.mark.slow
def test_a_save_that_fails_does_not_hide_why_the_run_ended(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.save_checkpoint", fail)
    cut_off(tmp_path, 2, EngineError("gone"))
    assert "The state before the rollouts that were cut off is not saved." in caplog.text
